"""How fast clips are degraded, in seconds of audio per second of one core, each degradation and whole recipes.

    python benchmarks/degradations.py [--data CORPUS] [--seconds 4] [--clips 20]

Time is that of the processor, so a busy machine changes it little. With --data the shipped recipes also read their
speech, noise and rooms from the corpus, as training does.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from machine import describe_machine

from training_dacse.clips.pairs import corpus_pairs
from training_dacse.clips.recipe import KINDS
from training_dacse.clips.rooms import SimulatedRooms

RATE, HOP = 44100, 512
RECIPES = Path(__file__).parents[1] / "examples" / "configs"


def noise(num_samples, sampling_rate, rng):
    return 0.1 * rng.standard_normal((1, num_samples), dtype=np.float32), "noise"


def times_real_time(degrade, seconds: float, clips: int) -> float:
    """Seconds of audio per second of processor time; the first clip is not counted."""
    degrade(0)
    start = time.process_time()
    for index in range(1, clips + 1):
        degrade(index)
    return clips * seconds / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clips", type=int, default=20)
    args = parser.parse_args()

    print(describe_machine())
    rooms = SimulatedRooms(count=8)
    for index in range(40):  # fill the bank: it is computed once per process
        rooms(RATE, np.random.default_rng(index))
    sources = {"noise": noise, "music": noise, "speech": noise, "room": rooms, "small_room": rooms}
    time_axis = np.arange(round(args.seconds * RATE)) / RATE
    clean = (0.1 * np.sin(2 * np.pi * 200 * time_axis) * np.sin(2 * np.pi * 3 * time_axis)).astype(np.float32)[None]
    speed = {}
    for kind, (degradation, source) in KINDS.items():
        apply = degradation(sources[source]) if source else degradation()

        def degrade(index: int, apply=apply):
            apply(clean, RATE, np.random.default_rng(index))

        speed[kind] = times_real_time(degrade, args.seconds, args.clips)
    for recipe in sorted(RECIPES.glob("recipe_*.yaml")) if args.data else ():
        pairs = corpus_pairs(args.data, recipe, RATE, HOP)
        seconds = np.mean([pairs[index]["clean"].shape[-1] / RATE for index in range(args.clips)])
        speed[f"{recipe.stem}, read and degraded"] = times_real_time(pairs.__getitem__, seconds, args.clips)
    for name, factor in speed.items():
        print(f"{name:<36} {factor:7.0f} x real time")
    print(json.dumps({name: round(factor, 1) for name, factor in speed.items()}))


if __name__ == "__main__":
    main()
