"""Stage 1: one model on the mixture of all tasks. On one machine, or under `accelerate launch`:

python examples/train_stage1.py --config examples/configs/stage1_tiny.yaml --data CORPUS --codec CODEC --output OUT
"""

from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from training_dacse.arguments import DacSeTrainingArguments, DataArguments, parse_arguments
from training_dacse.data import load_codec
from training_dacse.runs import make_model, make_trainer, token_caches


def main():
    data, args = parse_arguments(DataArguments, DacSeTrainingArguments)
    set_seed(args.seed)
    model = make_model(data.model, load_codec(data.codec), data.model_overrides, data.num_codebooks)
    train, valid = token_caches(data, args.output_dir, model.config)
    trainer = make_trainer(model, args, train, valid)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
