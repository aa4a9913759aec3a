"""Windows in batches against the same windows one by one.

    python benchmarks/batching.py --seconds 60 --batch-size 8 [--model DIR]

Prints the median time of each over `--rounds` interleaved rounds, and the ratio.
"""

import argparse
import statistics
import time

import numpy as np
from machine import describe_machine
from transformers import pipeline

import dacse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=dacse.default_model())
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    args = parser.parse_args()

    enhance = pipeline("audio-enhancement", model=args.model, device=args.device)
    rate = enhance.processor.sampling_rate
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(args.seconds * rate)).astype(np.float32)
    enhance({"array": samples[:rate], "sampling_rate": rate})  # what is set up once
    times: dict[int, list[float]] = {1: [], args.batch_size: []}
    outputs = {}
    for _ in range(args.rounds):
        for batch_size, measured in times.items():
            started = time.perf_counter()
            outputs[batch_size] = enhance({"array": samples, "sampling_rate": rate}, batch_size=batch_size)["audio"]
            measured.append(time.perf_counter() - started)
    one, many = (statistics.median(measured) for measured in times.values())
    print(f"{describe_machine()}; {args.model} on {enhance.device}")
    print(f"{args.seconds:g} s of audio: {one:.1f} s one by one, {many:.1f} s in batches of {args.batch_size}")
    print(f"ratio {many / one:.2f} (at most 0.50 wanted); same audio: {np.array_equal(*outputs.values())}")


if __name__ == "__main__":
    main()
