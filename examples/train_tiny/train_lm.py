"""Stage 1 of the embedded model: what `examples/train_stage1.py` does, with a start and a shortcut of its own:

python examples/train_tiny/train_lm.py --config FILE.yaml --tokens TOKENS --output OUT

`start_as_quantizer` gives a new model weights under which it answers as the codec's quantizer would
(`requantizing.py`); `tokens_per_frame` then trains on so many random tokens of every frame (`subsampling.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from requantizing import start_as_quantizer
from subsampling import SubsamplingObjective, keep_lookup
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


@dataclass
class StartArguments:
    """What is the embedded model's own."""

    start_as_quantizer: bool = field(default=False, metadata={"help": "a new model starts as the codec's quantizer"})
    tokens_per_frame: int = field(
        default=0, metadata={"help": "train on so many random tokens of a frame of such a model; 0 for all"}
    )


def main():
    data, start, args = parse_arguments(DataArguments, StartArguments, DacSeTrainingArguments)
    set_seed(args.seed)
    model = make_model(data)
    processor = processor_of(data, model.config)
    if start.start_as_quantizer and not Path(data.model).exists():
        start_as_quantizer(model, processor.audio_tokenizer, processor.window_frames)
    train, valid = make_data(data, model.config)
    objective = make_objective(args, model.config, train, data.model)
    if start.tokens_per_frame:
        keep_lookup(model)
        own = objective.layout, objective.log_prior, objective.spoiled_frames
        objective = SubsamplingObjective(*own, start.tokens_per_frame)
    trainer = make_trainer(model, args, train, valid, processor, objective)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    save_for_use(trainer, processor)
    trainer.save_metrics("eval", trainer.evaluate())
    end_training(trainer)


if __name__ == "__main__":
    main()
