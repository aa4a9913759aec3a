"""How held-out loss and audio change with size, each size with a learning rate of its own:

python examples/experiments/scale.py --config examples/experiments/small.yaml --corpus CORPUS --tokens TOKENS \\
    --output docs/experiments/scale

In full: --config examples/experiments/full.yaml --sizes 125M 350M 1B.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from score import BEST, ExperimentArguments, Listener, remarks

from training_dacse.experiments.arms import Arm, generate_with, train_arm
from training_dacse.experiments.results import Results, interval
from training_dacse.experiments.scaling import best_rate, fit_power_law
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments


@dataclass
class ScaleArguments:
    sizes: list[str] | None = field(default=None, metadata={"help": "named sizes; else widths of a small model"})
    widths: list[int] = field(default_factory=lambda: [64, 128, 256], metadata={"help": "hidden sizes without names"})
    rates: list[float] = field(
        default_factory=lambda: [0.3, 1.0, 3.0], metadata={"help": "of the learning rate, tried with the first seed"}
    )


def size_arm(scale: ScaleArguments, size, overrides: str | None) -> Arm:
    """The arm of a size: its name, or a width."""
    if scale.sizes:
        return Arm({"model": size, "model_overrides": None})
    return Arm({"model_overrides": f"{overrides},hidden_size={size},intermediate_size={4 * size}"})


def main():
    types = ExperimentArguments, ScaleArguments, DataArguments, DacSeTrainingArguments
    experiment, scale, data, args = parse_arguments(*types)
    folder, sizes = Path(args.output_dir), scale.sizes or scale.widths
    results = Results(
        folder, "Size, each with a learning rate of its own", {"parameters": "none", "rate": "none"} | BEST
    )
    listener = Listener(experiment, data, folder)
    tuned = Results(folder / "rates", "Learning rates by size, first seed", {"loss": "low"})
    names = {size: size if scale.sizes else f"width {size}" for size in sizes}
    for size, name in names.items():
        arm, tried = size_arm(scale, size, data.model_overrides), {}
        for factor in scale.rates:
            rate = factor * args.learning_rate
            label = f"{name}, rate {rate:g}"
            if not tuned.has(label, 0):
                own = Arm(arm.settings | {"learning_rate": rate})
                tuned.add(label, 0, train_arm(own, data, args, 0, folder / "runs" / f"{label}-0")[1])
            tried[rate] = json.loads(tuned.path(label, 0).read_text())["figures"]["loss"]
        own, label = Arm(arm.settings | {"learning_rate": best_rate(tried)}), f"{name}, rate {best_rate(tried):g}"
        for seed in range(experiment.seeds):
            if not results.has(name, seed):
                model, losses = train_arm(own, data, args, seed, folder / "runs" / f"{label}-{seed}")
                facts = {"parameters": model.num_parameters(), "rate": best_rate(tried)}
                results.add(name, seed, facts | losses | listener.score(generate_with(model, listener.processor)))
    tuned.write([f"{name}, rate {factor * args.learning_rate:g}" for name in names.values() for factor in scale.rates])
    found = [results.read()[name] for name in names.values()]
    law = fit_power_law(*([interval(figures[key])[0] for figures in found] for key in ("parameters", "loss")))
    fitted = f"Held-out loss = {law[0]:.2f} x parameters ^ {-law[1]:.3f} ({len(sizes)} sizes: only a description)."
    results.write(list(names.values()), ["", fitted, *remarks(args, data)])


if __name__ == "__main__":
    main()
