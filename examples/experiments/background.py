"""What lifts background suppression (BAK)? Decoding and objective, on the same clips and steps:

python examples/experiments/background.py --config examples/experiments/small.yaml --corpus CORPUS --tokens TOKENS \\
    --output docs/experiments/background
"""

from pathlib import Path

from score import BEST, ExperimentArguments, Listener, remarks

from training_dacse.experiments.arms import Arm, generate_with, train_arm
from training_dacse.experiments.results import Results
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments

ARMS = {
    "cross-entropy": Arm(),
    "logit adjustment": Arm({"logit_adjustment": 1.0}),
    "spoiled frames": Arm({"spoiled_frames": 0.8}),
    "both": Arm({"logit_adjustment": 1.0, "spoiled_frames": 0.8}),
}


def main():
    experiment, data, args = parse_arguments(ExperimentArguments, DataArguments, DacSeTrainingArguments)
    folder = Path(args.output_dir)
    results = Results(folder, "Background suppression", BEST | {"BAK/natural_noise": "high"})
    listener = Listener(experiment, data, folder)
    for seed in range(experiment.seeds):
        for name in experiment.only or ARMS:
            if not results.has(name, seed):
                model, losses = train_arm(ARMS[name], data, args, seed, folder / "runs" / f"{name}-{seed}")
                results.add(name, seed, losses | listener.score(generate_with(model, listener.processor)))
        results.write(list(ARMS), remarks(args, data))


if __name__ == "__main__":
    main()
