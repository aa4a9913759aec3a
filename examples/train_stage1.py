"""Stage 1: one model on the mixture of all tasks. On one machine, or under `accelerate launch`:

python examples/train_stage1.py --config examples/configs/stage1_tiny.yaml --data CORPUS --codec CODEC --output OUT
"""

from transformers import set_seed

from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.tokens.cache import find_codec
from training_dacse.lm.runs import end_training, last_checkpoint, make_data, make_model, make_trainer, save_for_use


def main():
    data, args = parse_arguments(DataArguments, DacSeTrainingArguments)
    set_seed(args.seed)
    codec = find_codec(data.codec or data.model)
    model = make_model(data, codec)
    train, valid = make_data(data, args.output_dir, codec, model.config)
    trainer = make_trainer(model, args, train, valid, codec)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    save_for_use(trainer, codec)
    trainer.save_metrics("eval", trainer.evaluate())
    end_training(trainer)


if __name__ == "__main__":
    main()
