"""An adapter for one task or for own recordings (noisy/ and clean/ folders), on the embedded model or any other:

python examples/train_adapter.py --config examples/configs/adapter_tiny.yaml --data PAIRS --output ADAPTER
"""

from transformers import set_seed

import dacse
from training_dacse.lm.adapters import add_adapter, save_adapter
from training_dacse.lm.arguments import AdapterArguments, DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.tokens.cache import find_codec
from training_dacse.lm.runs import end_training, make_data, make_model, make_trainer, task_losses


def main():
    defaults = {"model": dacse.default_model()}
    data, adapter, args = parse_arguments(DataArguments, AdapterArguments, DacSeTrainingArguments, defaults=defaults)
    set_seed(args.seed)
    codec = find_codec(data.codec or data.model)
    model = make_model(data, codec)
    train, valid = make_data(data, args.output_dir, codec, model.config)
    trainer = make_trainer(add_adapter(model, adapter), args, train, valid)
    before = task_losses(trainer)  # a new adapter changes nothing
    trainer.train()
    after = task_losses(trainer)
    if trainer.is_world_process_zero():
        save_adapter(trainer.model, args.output_dir, adapter.purpose, before, after)
    end_training(trainer)


if __name__ == "__main__":
    main()
