"""Speed against the naive baseline of naive.py: every row's calls in turn, their ratios, one JSON, one table.

    python benchmarks/speed.py                              all rows of a CPU into docs/speed.md; about an hour
    python benchmarks/speed.py --quick                      every row in a few minutes, printed only
    python benchmarks/speed.py --device cuda                the rows that need a GPU
    python benchmarks/speed.py --rows file codec --rounds 5 some rows
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/speed.py --processor-time
                                                            on a busy machine: one core, and only what it did for us

Seconds of the processor are those of one thread: more of them wait for one another by counting.

Rows run one after the other, each in a process of its own, which also gives the memory it needed. What is done
is written after every row, into the table that is there; a row that fails is left out, and the exit status is 1. Every
row has two rounds, and no row begins another one once it has had half a minute.
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

import speed_rows_audio as rows_audio
import speed_rows_decoding as rows_decoding
import torch
from machine import describe_machine
from speed_page import GIGABYTE, write_table
from speed_row import FULL, QUICK, Row

# Of a copy that says how fast memory is: far more than any cache, and on a GPU than it takes to begin.
COPIED_BYTES = {"cpu": 2**29, "cuda": 2**32}
ROW_SECONDS = 30  # after which no row begins another round
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
CPU_ROWS = {
    "file": rows_audio.whole_file,
    "file775": rows_audio.released_grid_file,
    "window14": rows_decoding.window_14m,
    "window30": rows_decoding.window_30m,
    "rivals1": rows_decoding.rivals_of_one,
    "rivals8": rows_decoding.rivals_of_many,
    "large": rows_decoding.large,
    "packets": rows_audio.lost_packets,
    "codec": rows_audio.embedded_codec,
    "codec_released": rows_audio.released_size_codec,
    "tokens": rows_audio.tokens,
    "command": rows_audio.command,
}
GPU_ROWS = {
    "gpu_single": rows_decoding.gpu_single,
    "gpu_batched": rows_decoding.gpu_batched,
    "gpu_more": rows_decoding.gpu_more,
    "gpu_codec": rows_audio.gpu_codec,
    "gpu_tokens": rows_audio.gpu_tokens,
}


def processor_seconds() -> float:
    """Seconds of the processor that this process and those it waited for have had so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(name: str, quick: bool, device: str, rounds: int | None, clock: Callable[[], float]) -> dict:
    """Times a row's calls in turn.

    Args:
        name: Of the row.
        quick: Whether little of everything is run.
        device: Such as "cuda".
        rounds: How many; None for as many as fit `ROW_SECONDS`, at least two.
        clock: Gives seconds.
    """
    scale = QUICK if quick else FULL
    row = (CPU_ROWS | GPU_ROWS)[name](scale, device)
    if torch.device(device).type == "cuda":
        row.calls["baseline"]()  # loads the kernels
    seconds: dict[str, list[float]] = {call: [] for call in row.calls}
    bandwidths, began = [], clock()
    for number in range(rounds or scale.most_rounds):
        if number >= scale.least_rounds and rounds is None and clock() - began > ROW_SECONDS:
            break
        if row.bytes_read:
            bandwidths.append(measure_bandwidth(device, clock))
        for call, run in row.calls.items():
            seconds[call].append(time_call(run, device, clock))
    baselines = [value / row.baseline_share for value in seconds["baseline"]]
    ratios = {
        call: [round(baseline / value, 3) for baseline, value in zip(baselines, values, strict=True)]
        for call, values in seconds.items()
        if call != "baseline"
    }
    return {
        "row": name,
        "what": row.what,
        "goal": row.goal,
        "seconds": {call: [round(value, 4) for value in values] for call, values in seconds.items()},
        "ratios": ratios,
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "facts": row.facts | describe(row, seconds["dacse"], baselines, bandwidths),
    }


def describe(row: Row, seconds: list[float], baselines: list[float], bandwidths: list[float]) -> dict[str, object]:
    """What follows from how long it took.

    Args:
        row: What was timed.
        seconds: Of ours, a round each.
        baselines: Seconds of the whole baseline.
        bandwidths: Bytes per second of copies; empty where the row has no memory limit.
    """
    median, facts = statistics.median(seconds), {}
    if row.baseline_share < 1:
        facts["baseline timed on"] = f"{row.baseline_share:.1%} of it"
    if row.audio_seconds:
        facts["real-time factor"] = round(median / row.audio_seconds, 4)
    if bandwidths:
        least = row.bytes_read / statistics.median(bandwidths)
        facts["of the memory limit"] = f"{least / median:.0%}"
        facts["ratio at that limit"] = f"{statistics.median(baselines) / least:.1f} x"
    if torch.cuda.is_available() and (allocated := torch.cuda.max_memory_allocated()):
        facts["gigabytes on the GPU"] = round(allocated / GIGABYTE, 1)
    if row.count > 1:
        facts["tokens per second"] = round(row.count / median, 1)
    return facts


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


def make_page(results: dict[str, dict]) -> str:
    """The page of the rows that were measured, by name, and of those that were not."""
    every = CPU_ROWS | GPU_ROWS
    missing = {name: row.__doc__.splitlines()[0].rstrip(".") for name, row in every.items() if name not in results}
    return write_table([results[name] for name in every if name in results], missing)


def write_page(results: dict[str, dict]) -> None:
    """The page and what it was made from."""
    ordered = [results[name] for name in CPU_ROWS | GPU_ROWS if name in results]
    PAGE.with_suffix(".json").write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(make_page(results))


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
        if not args.quick:
            write_page(results)
    print(make_page(results))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
