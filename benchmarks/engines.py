"""Plain Llama repositories in other engines: the ids of this package's `generate`, and none off the grid.

    python benchmarks/engines.py write DIR                          # a random model, prompts, what is expected
    VLLM/bin/python benchmarks/engines.py vllm DIR                   # in vLLM's own environment: both interfaces
    PYTHONPATH=DIR VLLM/bin/python -m vllm.entrypoints.openai.api_server --model DIR --dtype float32 --port 8000 \
        --logits-processors codebook_grid:GridLogitsProcessor &
    python benchmarks/engines.py served DIR --url http://127.0.0.1:8000   # the client, against that server

Each prints what it compared, and fails where an id differs.
"""

import argparse
import json
import sys
from pathlib import Path

SHAPE = {"num_codebooks": 6, "codebook_size": 512, "first_code_id": 5, "max_position_embeddings": 1024}
LAYERS = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}  # a size that all attention kernels have
FRAMES = (1, 7, 23, 40, 12, 3, 31, 18)  # of the prompts
PROMPTS = "prompts.json"


def write(folder: Path) -> None:
    """A plain Llama, and what this package makes of prompts."""
    import torch

    import dacse
    from hub_upload.plain_llama import stage_plain_llama

    torch.manual_seed(0)
    vocab_size = SHAPE["first_code_id"] + SHAPE["num_codebooks"] * SHAPE["codebook_size"]
    config = dacse.DacSeConfig(**SHAPE, **LAYERS, **HEADS, vocab_size=vocab_size, initializer_range=0.2)
    model = dacse.DacSeForEnhancement(config).eval()
    folder.mkdir(parents=True)
    stage_plain_llama(model, folder, "5GB")
    pairs = []
    for frames in FRAMES:
        codes = torch.randint(SHAPE["codebook_size"], (frames, SHAPE["num_codebooks"]))
        noisy = codes + SHAPE["first_code_id"] + torch.arange(SHAPE["num_codebooks"]) * SHAPE["codebook_size"]
        prompt = [config.bos_token_id, *noisy.flatten().tolist(), config.start_clean_token_id]
        answer = model.generate(input_ids=torch.tensor([prompt]))[0, len(prompt) :].tolist()
        pairs.append({"prompt": prompt, "answer": answer})
    (folder / PROMPTS).write_text(json.dumps(pairs))
    print(f"{len(pairs)} prompts, {sum(len(pair['answer']) for pair in pairs)} ids")


def run_vllm(folder: Path) -> None:
    """Batches in vLLM: greedy ones through both interfaces, and drawn ones."""
    sys.path.insert(0, str(folder))
    import codebook_grid
    import vllm

    pairs = json.loads((folder / PROMPTS).read_text())
    prompts = [{"prompt_token_ids": pair["prompt"]} for pair in pairs]
    grid = codebook_grid.Grid(**{name: SHAPE[name] for name in ("num_codebooks", "codebook_size", "first_code_id")})
    for processor in ("GridLogitsProcessor", "RequestGridLogitsProcessor"):
        engine = vllm.LLM(
            model=str(folder),
            dtype="float32",
            max_num_seqs=3,  # fewer than prompts: requests come, leave and change places
            enforce_eager=True,
            logits_processors=[f"codebook_grid:{processor}"],
        )
        greedy = engine.generate(prompts, vllm.SamplingParams(temperature=0, max_tokens=1024))
        answers = [list(output.outputs[0].token_ids) for output in greedy]
        equal = sum(answer == pair["answer"] for answer, pair in zip(answers, pairs, strict=True))
        drawn = engine.generate(prompts, vllm.SamplingParams(temperature=1, seed=0, max_tokens=1024))
        legal = [is_legal(grid, pair, output.outputs[0].token_ids) for pair, output in zip(pairs, drawn, strict=True)]
        print(f"vLLM {vllm.__version__}, {processor}: {equal} of {len(pairs)} greedy answers equal,", end=" ")
        print(f"{sum(legal)} of {len(pairs)} drawn ones on the grid and as long as their prompts")
        assert equal == sum(legal) == len(pairs)
        del engine


def is_legal(grid, pair: dict, answer) -> bool:
    """Whether a drawn answer is as long as its prompt asks and each id of it is one that may stand there."""
    noisy, _ = grid.missing(pair["prompt"])
    ranges = [grid.legal_ids(noisy, clean) for clean in range(len(answer))]
    return len(answer) == noisy + 1 and all(first <= i < stop for i, (first, stop) in zip(answer, ranges, strict=True))


def run_served(folder: Path, url: str) -> None:
    """The client's ids from a server."""
    import torch

    from hub_upload.doors.served import ServedModel

    pairs = json.loads((folder / PROMPTS).read_text())
    model = ServedModel.from_config(folder, url)
    length = max(len(pair["prompt"]) for pair in pairs)
    rows = [[model.config.pad_token_id] * (length - len(pair["prompt"])) + pair["prompt"] for pair in pairs]
    ids = model.generate(input_ids=torch.tensor(rows))
    equal = sum(
        row[length : length + len(pair["answer"])].tolist() == pair["answer"]
        for row, pair in zip(ids, pairs, strict=True)
    )
    print(f"{url}: {equal} of {len(pairs)} answers equal")
    assert equal == len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["write", "vllm", "served"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url")
    args = parser.parse_args()
    if args.step == "served":
        run_served(args.folder, args.url)
    else:
        {"write": write, "vllm": run_vllm}[args.step](args.folder.absolute())


if __name__ == "__main__":
    main()
