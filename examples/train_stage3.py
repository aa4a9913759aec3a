"""Stage 3: a model learns from scores of its own answers, by an adapter on the embedded model or any other:

python examples/train_stage3.py --config examples/configs/stage3_tiny.yaml --tokens TOKENS --output ADAPTER

ADAPTER/rewards.json has every score of held-out clips, rewarded or not, before and after.
"""

import json
from pathlib import Path

from transformers import set_seed

import dacse
from evaluation_dacse.metrics import METRICS, load_metric, split_metric
from training_dacse.lm.adapters import add_adapter, save_adapter
from training_dacse.lm.arguments import (
    AdapterArguments,
    DacSeTrainingArguments,
    DataArguments,
    Stage3Arguments,
    parse_arguments,
)
from training_dacse.lm.rewards.metrics import MetricRewards
from training_dacse.lm.rewards.trainer import RewardTrainer
from training_dacse.lm.runs import end_training, last_checkpoint, make_data, make_model, processor_of, save_for_use


def main():
    kinds = (DataArguments, AdapterArguments, Stage3Arguments, DacSeTrainingArguments)
    data, adapter, stage, args = parse_arguments(*kinds, defaults={"model": dacse.default_model()})
    set_seed(args.seed)
    model = make_model(data)
    train, valid = make_data(data, model.config)
    own = train.only(*adapter.adapted_tasks) if adapter.adapted_tasks else train
    processor = processor_of(data, model.config)
    rewarding = [name for name in stage.metrics if METRICS[split_metric(name)[0]].scales.keys() & stage.rewards.keys()]
    with (
        MetricRewards(load_metric, rewarding, stage.processes) as reward,
        MetricRewards(load_metric, stage.metrics, stage.processes) as watched,
    ):
        model = model if stage.full else add_adapter(model, adapter)
        trainer = RewardTrainer(model, args, stage, own, valid, processor, reward, watched)
        trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
        save(trainer, adapter)
    end_training(trainer)


def save(trainer: RewardTrainer, adapter: AdapterArguments) -> None:
    """Leaves the adapter, or the model and its processor, and what held-out clips say of it."""
    output, measured = Path(trainer.args.output_dir), trainer.before_and_after()
    if trainer.start is not None:
        save_for_use(trainer, trainer.processor)
    if trainer.is_world_process_zero():
        if trainer.start is None:
            losses = [{task: figures[f"eval_loss/{task}"] for task in trainer.tasks} for figures in measured]
            save_adapter(trainer.model, output, adapter.purpose, *losses)
        figures = {name: [each[name] for each in measured] for name in measured[0] if name in measured[1]}
        (output / "rewards.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
