"""Which grid should the codec have? Codec and language model of each on the same short budget, then a table:

python examples/train_tiny/sweep.py --data CORPUS --output runs/sweep --settings cpu --seconds codec=600 subsampled=300
python examples/train_tiny/sweep.py --data CORPUS --output runs/sweep --settings gpu \\
    --seconds codec=90 subsampled=60 stage1=60

The grids are in sweep.yaml; a grid that is done is not done again. In OUTPUT/results/results.md: tokens and kbit per
second of audio; STOI and mel distance of held-out speech through the codec alone; held-out loss of the language model
in nats per second of audio (per token would favour many easy tokens); real-time factor where they ran.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from lm import build_tokens, train_stage1, train_subsampled
from pystoi import stoi
from settings import HERE, Run, add_run_options, read_run
from stages import codec_clips, decode, train_codec
from transformers import DacModel

from modeling_dacse import DacSeForEnhancement
from processing_dacse.codec_dacse import decode_in_pieces, encode_in_pieces
from training_dacse.codec.losses import SpectralDistances
from training_dacse.codec.segments import CodecSegments
from training_dacse.experiments.results import Results
from training_dacse.lm.listening import enhance_codes
from training_dacse.tokens.encode import find_processor

SECONDS = 2.0  # of the held-out stretches the codec is judged by
STRETCHES = 16


def sweep_grid(run: Run, wanted: dict) -> dict[str, float]:
    """Trains codec and language model of one grid and measures both; `wanted` changes the codec's settings."""
    done = run.output / "figures.json"
    if done.exists():
        return json.loads(done.read_text())
    run = run.with_settings("codec", codec=run.settings["codec"]["codec"] | wanted, given=None)
    for work in (decode, train_codec, build_tokens, train_subsampled, train_stage1):
        work(run)
    codec = DacModel.from_pretrained(run.codec).to(run.device).eval()
    config = codec.config
    frame_rate = config.sampling_rate / config.hop_length
    tokens = frame_rate * config.n_codebooks
    loss = json.loads((run.output / "stage1/eval_results.json").read_text())["eval_loss"]
    figures = {
        "tokens/s": tokens,
        "kbit/s": tokens * math.log2(config.codebook_size) / 1000,
        **codec_figures(run, codec),
        "loss, nats/s": loss * tokens,
        "real-time factor": real_time_factor(run),
    }
    done.write_text(json.dumps(figures) + "\n")
    return figures


def held_out(run: Run, codec: DacModel) -> torch.Tensor:
    """Stretches of speech nobody was trained on, (batch, sample), whole frames long."""
    rate, hop = codec.config.sampling_rate, codec.config.hop_length
    segments = CodecSegments(*codec_clips(run, "valid"), rate, noise_probability=0.0, level_db=(0.0, 0.0))
    return next(segments(STRETCHES, int(SECONDS * rate / hop) * hop, seed=0))


def codec_figures(run: Run, codec: DacModel) -> dict[str, float]:
    """STOI and multi-scale mel distance of held-out speech through the codec."""
    clean, rate = held_out(run, codec), codec.config.sampling_rate
    coded = decode_in_pieces(codec, encode_in_pieces(codec, clean.to(run.device))).float().cpu()
    scores = [stoi(*pair, rate) for pair in zip(clean.numpy(), coded.numpy(), strict=True)]
    return {"STOI": sum(scores) / len(scores), "mel": SpectralDistances(rate)(coded, clean)["mel"].item()}


def real_time_factor(run: Run) -> float:
    """Seconds that encoding, enhancing and decoding a window take, per second of audio, one window at a time."""
    model = DacSeForEnhancement.from_pretrained(run.output / "stage1").to(run.device)
    processor = find_processor(run.output / "stage1")
    codec = processor.audio_tokenizer.to(run.device)
    stretch = held_out(run, codec)[:1, : processor.window_frames * processor.hop_length].numpy()
    elapsed = []
    for _ in range(3):  # the first ones warm up
        started = time.perf_counter()
        clean = enhance_codes(model, processor, processor.encode(stretch)[0])
        processor.decode_codes(clean[None])
        elapsed.append(time.perf_counter() - started)
    return min(elapsed) * processor.sampling_rate / stretch.shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    parser.add_argument("--grids", default=HERE / "sweep.yaml", help="YAML of names and changes of the codec")
    args = parser.parse_args()
    run = read_run(args)
    decode(run)
    grids = yaml.safe_load(Path(args.grids).read_text())
    best = dict.fromkeys(("STOI",), "high") | dict.fromkeys(("mel", "loss, nats/s", "real-time factor"), "low")
    results = Results(run.output / "results", f"Grids, on {run.device}", {"tokens/s": "none", "kbit/s": "none"} | best)
    for name, wanted in grids.items():
        here = run.output / "".join(letter if letter.isalnum() else "_" for letter in name)
        here.mkdir(exist_ok=True)
        if not (here / "corpus").exists():
            (here / "corpus").symlink_to(run.corpus)
        results.add(name, 0, sweep_grid(replace(run, output=here), wanted))
        results.write(list(grids))


if __name__ == "__main__":
    main()
