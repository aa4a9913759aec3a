"""Which strategy serves every task? Stage 1 only, two stages, each balancing, a curriculum, an anchor, in equal steps:

python examples/ablate_strategy.py --config examples/configs/ablation_tiny.yaml --data CORPUS --codec DIR --output OUT

In full: --config examples/configs/ablation_full.yaml --codec descript/dac_44khz.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path

from modeling_dacse import DacSeForEnhancement
from training_dacse.experiments.ablations import train_variant, write_results
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, Stage2Arguments, parse_arguments
from training_dacse.lm.runs import end_training, task_losses
from training_dacse.lm.stages import train_tasks
from training_dacse.tokens.cache import find_codec


def main():
    data, stage, args = parse_arguments(DataArguments, Stage2Arguments, DacSeTrainingArguments)
    codec = find_codec(data.codec)
    variants = {"stage 1 only": {}, "curriculum": {"curriculum_steps": args.max_steps // 2}}
    variants |= {name: {"balancing": name} for name in ("uncertainty", "gradnorm", "dwa")}
    results = {name: task_losses(train_variant(name, data, args, codec, **own)) for name, own in variants.items()}

    half = train_variant("first half", data, args, codec, max_steps=args.max_steps // 2)
    for name, anchor in (("two stages", "none"), ("two stages, l2sp", "l2sp"), ("two stages, ewc", "ewc")):
        second, own = copy(args), replace(stage, anchor=anchor)
        second.output_dir = str(Path(args.output_dir) / name)
        second.max_steps = max(1, args.max_steps // 2 // (len(stage.order or half.tasks) * stage.rounds))
        second.learning_rate = args.learning_rate / 10
        model = DacSeForEnhancement.from_pretrained(half.args.output_dir)
        matrix = train_tasks(model, second, own, half.train_dataset, half.eval_dataset)
        results[name] = dict(zip(matrix.tasks, matrix.losses[-1], strict=True))
    write_results(args.output_dir, "Training strategy: held-out loss (nats per token)", results)
    end_training(half)


if __name__ == "__main__":
    main()
