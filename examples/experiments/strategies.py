"""Which strategy serves every task? All arms take as many steps on the same clips:

python examples/experiments/strategies.py --config examples/experiments/small.yaml --corpus CORPUS --tokens TOKENS \\
    --output docs/experiments/strategies

In full: --config examples/experiments/full.yaml, on as many machines as there are arms (--only ARM).
"""

import json
from pathlib import Path

from score import BEST, ExperimentArguments, Listener, remarks

from training_dacse.experiments.arms import Arm, evened_weights, generate_with, train_arm
from training_dacse.experiments.results import Results
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, Stage2Arguments, parse_arguments
from training_dacse.tokens.cache import TokenCache

CURRICULUM = 0.5  # of a run, after which all clips are open


def arms_of(epochs: float) -> dict[str, Arm]:
    """The arms by name, with curricula of so many epochs."""
    return {
        "one stage": Arm(),
        "fixed weights": Arm({"weighting": None}),  # that even the losses of one stage out
        "uncertainty": Arm({"weighting": "uncertainty"}),
        "GradNorm": Arm({"weighting": "gradnorm"}),
        "dynamic average": Arm({"weighting": {"kind": "dwa", "period": 10}}),
        "easy clips first": Arm({"sampling": {"kind": "easy_first", "epochs": epochs}}),
        "tasks one after another": Arm({"sampling": {"kind": "tasks_in_turn", "epochs": epochs}}),
        "two stages": Arm(stage2=Stage2Arguments()),
        "two stages, L2-SP": Arm(stage2=Stage2Arguments(anchor="l2sp", anchor_strength=0.01)),
        "two stages, EWC": Arm(stage2=Stage2Arguments(anchor="ewc", anchor_strength=0.01)),
        "two stages, replay": Arm(stage2=Stage2Arguments(replay=0.3)),
    }


def epochs_of_run(data: DataArguments, args: DacSeTrainingArguments) -> float:
    """How often a run meets each clip."""
    met = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return met / len(TokenCache(data.tokens, "train"))


def main():
    experiment, data, args = parse_arguments(ExperimentArguments, DataArguments, DacSeTrainingArguments)
    folder = Path(args.output_dir)
    results = Results(folder, "Training strategies", BEST)
    listener = Listener(experiment, data, folder)
    arms = arms_of(CURRICULUM * epochs_of_run(data, args))
    for seed in range(experiment.seeds):
        for name in experiment.only or arms:
            arm = arms[name]
            if results.has(name, seed):
                continue
            if name == "fixed weights":
                losses = json.loads(results.path("one stage", 0).read_text())["figures"]
                only_losses = {key: value for key, value in losses.items() if key.startswith("loss/")}
                arm = Arm({"weighting": {"kind": "fixed", "weights": evened_weights(only_losses)}})
            model, losses = train_arm(arm, data, args, seed, folder / "runs" / f"{name}-{seed}")
            results.add(name, seed, losses | listener.score(generate_with(model, listener.processor)))
        results.write(list(arms), remarks(args, data))


if __name__ == "__main__":
    main()
