"""Writes a plain Llama repository, which any engine loads: weights, configuration, tokenizer, the grid's door.

Knows no codec and no Hub.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_dacse import DacSeConfig, DacSeForEnhancement

from .doors import codebook_grid

LAYOUT = ("num_codebooks", "codebook_size", "first_code_id", "start_clean_token_id", "unk_token_id")


def stage_plain_llama(model: DacSeForEnhancement, folder: Path, shard_size: str) -> None:
    """Fills `folder` with the repository of a plain Llama that gives the very logits of `model`.

    Args:
        model: on the CPU.
        folder: an existing, empty folder.
        shard_size: of the weights' files, such as "5GB".

    Raises:
        ValueError: the model's tokens do not follow one another as the door has them.
    """
    if model.config.pattern != "flattened":
        raise ValueError(f"the model has the {model.config.pattern} pattern; other engines are told the flattened one")
    config = plain_config(model.config)
    with torch.device("meta"):
        plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config.eos_token_id = config.eos_token_id
    plain.save_pretrained(folder, max_shard_size=shard_size)
    number_tokenizer(config).save_pretrained(folder)
    # The names that engines of before transformers 5 look for; what they do not find they would guess.
    theta, dtype = config.rope_parameters["rope_theta"], str(model.dtype).removeprefix("torch.")
    _add(folder / "config.json", rope_theta=theta, torch_dtype=dtype)
    _add(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    shutil.copy(codebook_grid.__file__, folder)


def _add(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=2, sort_keys=True) + "\n")


def plain_config(config: DacSeConfig) -> LlamaConfig:
    """The Llama part of a configuration, and the token layout for those who look for it."""
    ours = config.to_dict()
    fields = {name: ours[name] for name in LlamaConfig().to_dict() if name in ours and name != "model_type"}
    layout = {name: ours[name] for name in LAYOUT}
    return LlamaConfig(**fields | layout | {"architectures": ["LlamaForCausalLM"]})


def number_tokenizer(config: LlamaConfig) -> PreTrainedTokenizerFast:
    """A tokenizer for servers that insist on one: a text is the ids as numbers.

    >>> tokenizer = number_tokenizer(LlamaConfig(vocab_size=9, bos_token_id=0, pad_token_id=1, eos_token_id=2))
    >>> tokenizer("0 5 8 3").input_ids, tokenizer.decode([0, 5, 8, 3])
    ([0, 5, 8, 3], '0 5 8 3')
    """
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(config.vocab_size)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ("bos_token", "pad_token", "eos_token")
    special = {name: AddedToken(str(getattr(config, f"{name}_id")), single_word=True) for name in names}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=config.max_position_embeddings,
        **special,
    )
