"""An adapter for one task or for own recordings (noisy/ and clean/ folders), on the embedded model or any other:

dacse tokenize PAIRS -o runs/pairs
python examples/train_adapter.py --config examples/configs/adapter_tiny.yaml --tokens runs/pairs --output ADAPTER
"""

from transformers import set_seed

import dacse
from training_dacse.lm.adapters import adapter_losses, add_adapter, save_adapter
from training_dacse.lm.arguments import AdapterArguments, DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.lm.runs import (
    end_training,
    last_checkpoint,
    make_data,
    make_model,
    make_objective,
    make_trainer,
    processor_of,
)


def main():
    defaults = {"model": dacse.default_model()}
    data, adapter, args = parse_arguments(DataArguments, AdapterArguments, DacSeTrainingArguments, defaults=defaults)
    set_seed(args.seed)
    model = make_model(data)
    train, valid = make_data(data, model.config)
    objective = make_objective(args, model.config, train, data.model)
    own = train.only(*adapter.adapted_tasks) if adapter.adapted_tasks else train
    processor = processor_of(data, model.config)
    trainer = make_trainer(add_adapter(model, adapter), args, own, valid, processor, objective)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    before, after = adapter_losses(trainer)
    if trainer.is_world_process_zero():
        save_adapter(trainer.model, args.output_dir, adapter.purpose, before, after)
    end_training(trainer)


if __name__ == "__main__":
    main()
