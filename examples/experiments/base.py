"""A start for small experiments: a model that answers as the codec's quantizer would, so that a few hundred steps are
spent on enhancing and not on finding the frames.

python examples/experiments/base.py --tokens TOKENS --num_codebooks 6 --output BASE
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed

from training_dacse.lm.arguments import DataArguments, parse_arguments
from training_dacse.lm.runs import make_model, processor_of

sys.path.append(str(Path(__file__).parents[1] / "train_tiny"))
from requantizing import start_as_quantizer  # noqa: E402

SHAPE = "hidden_size=168,num_hidden_layers=2,num_attention_heads=7,num_key_value_heads=1,head_dim=32"
SHAPE += ",intermediate_size=512,tie_word_embeddings=False,initializer_range=0.02,attention_dropout=0.0"


@dataclass
class BaseArguments:
    output: str = field(metadata={"help": "folder of the model"})


def main():
    base, data = parse_arguments(BaseArguments, DataArguments)
    set_seed(0)
    data.model_overrides = f"{SHAPE},max_position_embeddings=280"
    model = make_model(data)
    processor = processor_of(data, model.config)
    start_as_quantizer(model, processor.audio_tokenizer, processor.window_frames)
    model.save_pretrained(base.output)
    processor.save_pretrained(base.output)


if __name__ == "__main__":
    main()
