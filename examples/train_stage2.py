"""Stage 2: the stage 1 model fine-tuned on task after task; what it forgets is in OUT/forgetting.json and .png:

python examples/train_stage2.py --config examples/configs/stage2_tiny.yaml --tokens runs/tokens --model runs/stage1 \\
    --output runs/stage2
"""

from transformers import set_seed

from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, Stage2Arguments, parse_arguments
from training_dacse.lm.runs import (
    end_training,
    make_data,
    make_model,
    make_objective,
    make_trainer,
    processor_of,
    save_for_use,
)
from training_dacse.lm.stages import train_tasks


def main():
    data, stage, args = parse_arguments(DataArguments, Stage2Arguments, DacSeTrainingArguments)
    set_seed(args.seed)
    model = make_model(data)
    train, valid = make_data(data, model.config)
    objective = make_objective(args, model.config, train, data.model)
    processor = processor_of(data, model.config)
    matrix = train_tasks(model, args, stage, train, valid, objective, processor)
    trainer = make_trainer(model, args, train, valid, objective=objective)
    save_for_use(trainer, processor)
    for task, forgotten in matrix.forgetting().items():
        print(f"{task}: {matrix.losses[0][matrix.tasks.index(task)]:.3f} before, forgot {forgotten:.3f}")
    end_training(trainer)


if __name__ == "__main__":
    main()
