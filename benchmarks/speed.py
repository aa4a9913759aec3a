"""Speed against the naive baseline of naive.py: every row's calls in turn, medians and spread, one JSON, one table.

    python benchmarks/speed.py                              all rows of a CPU into docs/speed.md; 8 to 17 minutes
    python benchmarks/speed.py --quick                      every row in a minute or two, printed only
    python benchmarks/speed.py --device cuda                the rows that need a GPU
    python benchmarks/speed.py --rows file codec --rounds 5 some rows
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/speed.py --processor-time
                                                            on a busy machine: one core, and only what it did for us

Rows run one after the other, each in a process of its own, which also gives the memory it needed. What is done
is written after every row, into the table that is there; a row that fails is left out, and the exit status is 1. No
row begins another round once it has had half a minute.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch
from machine import describe_machine
from speed_rows import CPU_ROWS, FULL, GPU_ROWS, QUICK

import dacse
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import Enhancer

# Of a copy that says how fast memory is: far more than any cache, and on a GPU than it takes to begin.
COPIED_BYTES = {"cpu": 2**29, "cuda": 2**32}
ROW_SECONDS = 30  # after which no row begins another round
WINDOW_FRAMES = FULL.window_frames  # 4 s of the released grid
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
MODELS = {"embedded": None, "1B": "1B"}
GIGABYTE = 1e9


def describe_memory() -> list[str]:
    """What each choice of model and dtype takes, computed from the configurations."""
    lines = [
        "## Memory",
        "",
        "Beside half a gigabyte of imports a process holds the weights, and for the windows of a batch their keys and",
        "values: `2 * layers * key-value heads * head size * tokens * bytes`, in the dtype of the model (with int8 in",
        "that of what is not rounded, which on x86 processors before VNNI is float32: twice the figures below). Left",
        "to itself, `batch_size` is as many windows as take half a gigabyte on a CPU, or half of the free memory on a",
        "GPU, and at most 64; `dacse enhance` says which, and `logging` at level info. The codec sees at most four",
        "seconds at a time, whatever the length of the file.",
        "",
        "| model | dtype | weights, GB | keys and values of a window, GB | windows together on a CPU |",
        "|---|---|---|---|---|",
    ]
    for name, size in MODELS.items():
        config = DacSeConfig.from_size(size) if size else DacSeConfig.from_pretrained(dacse.default_model())
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            with torch.device("meta"):
                model = DacSeForEnhancement(config).to(torch.bfloat16 if dtype == torch.int8 else dtype)
            layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
            weights = layers * dtype.itemsize + (model.num_parameters() - layers) * model.dtype.itemsize
            width = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
            frames = min(config.max_frames, WINDOW_FRAMES)
            cache = 2 * width * (2 * frames * config.num_codebooks + 3) * model.dtype.itemsize
            lines.append(
                f"| {name} | {str(dtype).removeprefix('torch.')} | {weights / GIGABYTE:.3f} | {cache / GIGABYTE:.4f} |"
                f" {windows_together(model)} |"
            )
    return lines


def windows_together(model: DacSeForEnhancement) -> int:
    """How many windows the engine takes at a time."""
    return Enhancer(model, SimpleNamespace(**model.config.to_dict(), window_frames=None)).default_batch_size()


def processor_seconds() -> float:
    """Seconds of the processor that this process and those it waited for have had so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(name: str, quick: bool, device: str, rounds: int | None, clock: Callable[[], float]) -> dict:
    """Times a row's calls in turn."""
    scale = QUICK if quick else FULL
    row = (CPU_ROWS | GPU_ROWS)[name](scale, device)
    seconds: dict[str, list[float]] = {call: [] for call in row.calls}
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        row.calls["baseline"]()  # loads the kernels
    bandwidths = []
    began = clock()
    for number in range(rounds or scale.rounds):
        if number and rounds is None and clock() - began > ROW_SECONDS:
            break
        if row.bytes_read:
            bandwidths.append(measure_bandwidth(device, clock))
        for call, run in row.calls.items():
            seconds[call].append(time_call(run, device, clock))
    medians = {call: statistics.median(values) for call, values in seconds.items()}
    medians["baseline"] /= row.baseline_share
    others = {call: round(medians["baseline"] / medians[call], 2) for call in list(row.calls)[2:]}
    result = {
        "row": name,
        "what": row.what,
        "goal": row.goal,
        "seconds": {call: [round(value, 4) for value in values] for call, values in seconds.items()},
        "ratio": round(medians["baseline"] / medians["dacse"], 2),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "facts": dict(row.facts) | {f"{call}": f"{ratio} x" for call, ratio in others.items()},
    }
    if row.baseline_share < 1:
        result["facts"]["baseline timed on"] = f"{row.baseline_share:.1%} of it"
    if row.audio_seconds:
        result["facts"]["real-time factor"] = round(medians["dacse"] / row.audio_seconds, 3)
    if row.bytes_read:
        least = row.bytes_read / statistics.median(bandwidths)
        result["facts"]["of the memory limit"] = f"{least / medians['dacse']:.0%}"
        result["facts"]["ratio at that limit"] = f"{medians['baseline'] / least:.1f} x"
    if on_gpu:
        result["facts"]["gigabytes on the GPU"] = round(torch.cuda.max_memory_allocated() / GIGABYTE, 1)
    if row.count > 1:
        result["facts"]["tokens per second"] = round(row.count / medians["dacse"], 1)
    return result


def measure_bandwidth(device: str, clock: Callable[[], float]) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros(COPIED_BYTES[torch.device(device).type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Of four, for the first also fetches the pages.
    return 2 * len(source) / min(time_call(lambda: target.copy_(source), device, clock) for _ in range(4))


def time_call(call: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    """Seconds of a call, from an idle device to an idle device."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    started = clock()
    call()
    wait()
    return clock() - started


def spread(values: list[float]) -> str:
    """Median, lowest and highest, in seconds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def write_table(results: list[dict]) -> str:
    """The page of everything that was measured, here or on another machine."""
    lines = [
        "# Speed",
        "",
        "The baseline is `benchmarks/naive.py`: one window at a time through `LlamaForCausalLM.generate`, a mask",
        "built row by row, whole-file codec calls. Seconds are medians (lowest to highest) of interleaved rounds,",
        "as many as were begun within half a minute, at most three. A baseline that was timed on a part is scaled",
        "up for the ratio. Only float32 keeps the baseline's ids.",
        "The file is compared as the model generates it, as the baseline does; `with the recording kept` is the",
        "embedded model's default (`keep_recording`).",
        "The memory limit is the time it takes to read what every token needs, weights and what was said so far, as",
        "fast as a copy goes in the same process; the prompt is on top of it.",
        "",
        "| what | wanted | baseline, s | dacse, s | ratio | besides |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        seconds = result["seconds"]
        besides = "; ".join(f"{name} {value}" for name, value in result["facts"].items())
        lines.append(
            f"| {result['what']} | {result['goal']} | {spread(seconds['baseline'])} | {spread(seconds['dacse'])} |"
            f" {result['ratio']} x | {besides} |"
        )
    measured = {result["row"] for result in results}
    lines += [
        f"| {GPU_ROWS[name].__doc__.splitlines()[0].rstrip('.')} | | not measured | not measured | | "
        f"`python benchmarks/speed.py --device cuda --rows {name}` |"
        for name in GPU_ROWS
        if name not in measured
    ]
    lines += ["", "Measured by:", ""]
    for how in dict.fromkeys(result["measured"] for result in results):
        rows = ", ".join(result["row"] for result in results if result["measured"] == how)
        lines.append(f"- {how} (rows {rows})")
    lines += ["", *describe_memory()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", nargs="+", choices=[*CPU_ROWS, *GPU_ROWS])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()

    rows = args.rows or list(CPU_ROWS if args.device == "cpu" else GPU_ROWS)
    clock = processor_seconds if args.processor_time else time.perf_counter
    unit = "seconds of the processor" if args.processor_time else "seconds by the clock"
    measured = f"`python {' '.join(sys.argv)}`, {unit}, on {describe_machine()}"
    results, failed = {}, False
    if not args.quick and PAGE.with_suffix(".json").exists():
        results = {result["row"]: result for result in json.loads(PAGE.with_suffix(".json").read_text())}
    for name in rows:
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                result = pool.submit(measure, name, args.quick, args.device, args.rounds, clock).result()
        except Exception:  # whatever it is, the other rows are worth having
            failed = True
            results.pop(name, None)
            print(f"row {name} failed", file=sys.stderr)
            traceback.print_exc()
            continue
        print(json.dumps(result), flush=True)
        results[name] = result | {"measured": measured}
        ordered = [results[name] for name in CPU_ROWS | GPU_ROWS if name in results]
        if not args.quick:
            PAGE.with_suffix(".json").write_text(json.dumps(ordered, indent=1) + "\n")
            PAGE.write_text(write_table(ordered))
    print(write_table([results[name] for name in CPU_ROWS | GPU_ROWS if name in results]))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
