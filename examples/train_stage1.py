"""Stage 1: one model on the mixture of all tasks. On one machine, or under `accelerate launch`:

dacse tokenize CORPUS --recipe examples/configs/recipe_tiny.yaml --max-seconds 1 --whole --clips 1200 -o runs/tokens
python examples/train_stage1.py --config examples/configs/stage1_tiny.yaml --tokens runs/tokens --output runs/stage1
"""

from transformers import set_seed

from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.lm.runs import (
    end_training,
    last_checkpoint,
    make_data,
    make_model,
    make_objective,
    make_trainer,
    processor_of,
    save_for_use,
)


def main():
    data, args = parse_arguments(DataArguments, DacSeTrainingArguments)
    set_seed(args.seed)
    model = make_model(data)
    processor = processor_of(data, model.config)
    train, valid = make_data(data, model.config)
    objective = make_objective(args, model.config, train, data.model)
    trainer = make_trainer(model, args, train, valid, processor, objective)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    save_for_use(trainer, processor)
    trainer.save_metrics("eval", trainer.evaluate())
    end_training(trainer)


if __name__ == "__main__":
    main()
