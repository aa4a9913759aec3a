"""One step a code (the method's) against one step a frame: delayed codebooks, or a small depth model. On short
recordings, and on one of 35 s for latency and speed:

python examples/experiments/patterns.py --config examples/experiments/small.yaml --corpus CORPUS --tokens TOKENS \\
    --output docs/experiments/patterns
"""

import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from score import BEST, ExperimentArguments, Listener, remarks
from transformers import set_seed

from training_dacse.experiments.arms import Arm, Generate, enhance_in_windows, generate_with, held_out, train_arm
from training_dacse.experiments.frames import FrameModel, FrameObjective
from training_dacse.experiments.results import Results
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.lm.runs import last_checkpoint, make_data, make_model, make_trainer

DEPTH = {"delayed": 0, "depth model": 2}  # layers of it
LONG_SECONDS = 35.0


def train_frames(layers: int, data, args, seed: int, folder: Path) -> tuple[FrameModel, dict[str, float]]:
    """Trains a model of one step a frame, of the same shape and on the same clips as the one of one step a code."""
    args.seed, args.output_dir = seed, str(folder)
    set_seed(seed)
    model = FrameModel(make_model(data).config, layers)
    train, valid = make_data(data, model.config)
    trainer = make_trainer(model, args, train, valid, objective=FrameObjective(model.config))
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    return model, held_out(trainer.evaluate())


def speed(generate: Generate, listener: Listener) -> dict[str, float]:
    """Of a recording of 35 s: seconds until the first window is there, and real-time factor of all.

    On a CPU these are seconds of its work, whatever else it does meanwhile.
    """
    clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
    sounds = [soundfile.read(clip.noisy, dtype="float32")[0] for clip in listener.clips]
    rate = listener.processor.sampling_rate
    recording = np.resize(np.concatenate(sounds), round(LONG_SECONDS * rate))
    window = recording[: listener.window_frames * listener.processor.hop_length]
    elapsed = []
    for given in (window, window, recording):  # the first one warms up
        started = clock()
        enhance_in_windows(generate, listener.processor, given, listener.window_frames)
        elapsed.append(clock() - started)
    return {"first window, s": elapsed[1], "real-time factor": elapsed[2] / LONG_SECONDS}


def main():
    experiment, data, args = parse_arguments(ExperimentArguments, DataArguments, DacSeTrainingArguments)
    folder = Path(args.output_dir)
    best = {"parameters": "none"} | BEST | {"first window, s": "low", "real-time factor": "low"}
    results = Results(folder, "One step a code, or one step a frame", best)
    listener = Listener(experiment, data, folder)
    arms = ["flattened", *DEPTH]
    for seed in range(experiment.seeds):
        for name in arms:
            if results.has(name, seed):
                continue
            here = folder / "runs" / f"{name}-{seed}"
            if name == "flattened":
                model, losses = train_arm(Arm(), data, args, seed, here)
                generate = generate_with(model, listener.processor)
            else:
                model, losses = train_frames(DEPTH[name], data, args, seed, here)
                generate = model.generate_codes
            facts = {"parameters": model.num_parameters()} | losses | speed(generate, listener)
            results.add(name, seed, facts | listener.score(generate))
        results.write(arms, remarks(args, data))


if __name__ == "__main__":
    main()
