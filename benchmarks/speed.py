"""Speed against the naive baseline of naive.py: every row's calls in turn, medians and spread, one JSON, one table.

    python benchmarks/speed.py                              the whole table into docs/speed.md; about 12 minutes
    python benchmarks/speed.py --quick                      every row in a minute or two, printed only
    python benchmarks/speed.py --device cuda                with the rows that need a GPU
    python benchmarks/speed.py --rows file codec --rounds 5 some rows, printed only

Rows run one after the other, each in a process of its own, which also gives the memory it needed. What is done
is written after every row; a row that fails is left out, and the exit status is 1. No row begins another round once it
has had a minute: on a CPU the file has one.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from machine import describe_machine
from speed_rows import CPU_ROWS, FULL, GPU_ROWS, QUICK

ROW_SECONDS = 60  # after which no row begins another round
DOCS = Path(__file__).parents[1] / "docs"
MEMORY = """## Memory

Beside the weights and half a gigabyte of imports, a batch holds the keys and values of its windows, each `2 * layers *
key-value heads * head size * tokens * bytes` in the model's dtype: 8.5 MB for a window of the embedded model (float32,
1035 tokens), 0.9 GB for a 4 s window of the 1B model in bfloat16, twice that in float32. Left to itself, `batch_size`
is as many windows as take half a gigabyte on a CPU, at most 32, or half of the free memory on a GPU, at most 64;
`logging` says which at level info. The codec sees two seconds at a time, whatever the length of the file.
"""


def measure(name: str, quick: bool, device: str, rounds: int | None) -> dict:
    """Times a row's calls in turn."""
    scale = QUICK if quick else FULL
    row = (CPU_ROWS | GPU_ROWS)[name](scale, device)
    seconds: dict[str, list[float]] = {call: [] for call in row.calls}
    began = time.perf_counter()
    for number in range(rounds or scale.rounds):
        if number and rounds is None and time.perf_counter() - began > ROW_SECONDS:
            break
        for call, run in row.calls.items():
            started = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[call].append(time.perf_counter() - started)
    medians = {call: statistics.median(values) for call, values in seconds.items()}
    result = {
        "row": name,
        "what": row.what,
        "goal": row.goal,
        "seconds": {call: [round(value, 4) for value in values] for call, values in seconds.items()},
        "ratio": round(medians["baseline"] / medians["dacse"], 2),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "facts": dict(row.facts),
    }
    if row.audio_seconds:
        result["facts"]["real-time factor"] = round(medians["dacse"] / row.audio_seconds, 3)
    if row.count > 1:
        result["facts"]["tokens per second"] = round(row.count / medians["dacse"], 1)
    return result


def spread(values: list[float]) -> str:
    """Median, lowest and highest, in seconds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def write_table(results: list[dict], machine: str) -> str:
    lines = [
        "# Speed",
        "",
        f"`python benchmarks/speed.py` on {machine}.",
        "",
        "The baseline is `benchmarks/naive.py`: one window at a time through `LlamaForCausalLM.generate`, a mask",
        "built row by row, whole-file codec calls. Seconds are medians (lowest to highest) of interleaved rounds,",
        "three of them, or as many as were begun within a minute.",
        "",
        "| what | wanted | baseline, s | dacse, s | ratio | besides |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        seconds = result["seconds"]
        facts = dict(result["facts"])
        facts |= {
            f"{call}, s": spread(values) for call, values in seconds.items() if call not in ("baseline", "dacse")
        }
        besides = "; ".join(f"{name} {value}" for name, value in facts.items())
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
    lines += ["", MEMORY]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", nargs="+", choices=[*CPU_ROWS, *GPU_ROWS])
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()

    rows = args.rows or [*CPU_ROWS, *(GPU_ROWS if args.device != "cpu" else {})]
    machine, results = describe_machine(), []
    failed = False
    for name in rows:
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                results.append(pool.submit(measure, name, args.quick, args.device, args.rounds).result())
        except Exception:  # whatever it is, the other rows are worth having
            failed = True
            print(f"row {name} failed", file=sys.stderr)
            traceback.print_exc()
            continue
        print(json.dumps(results[-1]), flush=True)
        if not args.quick and not args.rows:
            (DOCS / "speed.json").write_text(json.dumps({"machine": machine, "rows": results}, indent=1) + "\n")
            (DOCS / "speed.md").write_text(write_table(results, machine))
    print(write_table(results, machine))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
