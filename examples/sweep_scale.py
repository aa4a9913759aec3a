"""How does the held-out loss fall with size? Three sizes on identical data and a fitted power law:

python examples/sweep_scale.py --config examples/configs/ablation_tiny.yaml --data CORPUS --codec DIR --output OUT

In full: --config examples/configs/ablation_full.yaml --codec descript/dac_44khz --sizes 125M 350M 1B.
"""

from dataclasses import dataclass, field

from training_dacse.experiments.ablations import fit_power_law, train_variant, write_results
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.lm.runs import end_training
from training_dacse.tokens.cache import find_codec


@dataclass
class SweepArguments:
    sizes: list[str] | None = field(default=None, metadata={"help": "named sizes; else three widths of a tiny model"})
    widths: list[int] = field(default_factory=lambda: [32, 64, 128], metadata={"help": "hidden sizes without names"})


def main():
    sweep, data, args = parse_arguments(SweepArguments, DataArguments, DacSeTrainingArguments)
    codec = find_codec(data.codec)
    variants = {size: {"model": size} for size in sweep.sizes or ()}
    for width in () if sweep.sizes else sweep.widths:
        own = f"hidden_size={width},intermediate_size={4 * width}"
        overrides = ",".join(filter(None, [data.model_overrides, own]))
        variants[f"width {width}"] = {"model_overrides": overrides}
    results = {}
    for name, own in variants.items():
        trainer = train_variant(name, data, args, codec, **own)
        metrics = trainer.evaluate()
        results[name] = {"parameters": trainer.model.num_parameters(), "held-out loss": metrics["eval_loss"]}
    points = [list(figures.values()) for figures in results.values()]
    scale, exponent = fit_power_law(*zip(*points, strict=True))
    title = f"Size: held-out loss = {scale:.2f} * parameters ** -{exponent:.3f}"
    write_results(args.output_dir, title, results, scale=scale, exponent=exponent)
    end_training(trainer)


if __name__ == "__main__":
    main()
