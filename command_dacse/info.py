"""`dacse info`: what a model is and what it needs, from its configuration files alone."""

import json
from typing import Annotated, Any

import typer

from command_dacse import default_model
from command_dacse.options import check_model
from command_dacse.terminal import one_line, say


def info(
    model: Annotated[str | None, typer.Argument(help="Directory or Hub id.  [default: the embedded model]")] = None,
    size: Annotated[str | None, typer.Option(help="A named size instead: tiny, 125M, ... 1B, 2B, 4B.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a model's size, token layout and memory, without loading its weights.

    Examples:

    - `dacse info`

    - `dacse info disco-eth/DAC-SE1`

    - `dacse info --size 1B --json`
    """
    if model and size:
        raise typer.BadParameter("give a model or --size, not both")
    try:
        check_model(model or default_model())
        facts = collect_facts(model or default_model(), size)
    except (OSError, ValueError) as error:
        say(f"error: {one_line(error)}")
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            typer.echo(
                f"{name.replace('_', ' '):<36} {value:,}" if not isinstance(value, str) else f"{name:<36} {value}"
            )


def collect_facts(path: str, size: str | None) -> dict[str, Any]:
    """Numbers of the model at `path`, or of a named size with the released codec.

    Bytes of the key-value cache count both halves of a prompt: a second of noisy audio and its clean answer.
    """
    import torch
    from transformers import DacModel

    from modeling_dacse import DacSeConfig, DacSeForEnhancement
    from training_dacse.experiments.costs import training_flops_per_token, training_memory

    config = DacSeConfig.from_size(size) if size else DacSeConfig.from_pretrained(path)
    codec_config = _codec_config(None if size else path)
    with torch.device("meta"):
        parameters = DacSeForEnhancement(config).num_parameters()
        codec_parameters = DacModel(codec_config).num_parameters()
    dtype = config.dtype or torch.float32
    frame_rate = codec_config.sampling_rate / codec_config.hop_length
    tokens = frame_rate * config.num_codebooks
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    longest = config.max_frames / frame_rate
    training = training_memory(config, parameters, config.max_position_embeddings)
    window = min(4.0, longest)
    return {
        "model": size or path,
        "parameters": parameters,
        "codec_parameters": codec_parameters,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "dtype": str(dtype).removeprefix("torch."),
        "vocabulary": config.vocab_size,
        "codebooks": config.num_codebooks,
        "codes_per_codebook": config.codebook_size,
        "sampling_rate": codec_config.sampling_rate,
        "frames_per_second": round(frame_rate, 4),
        "tokens_per_second_of_audio": round(tokens, 2),
        "context_tokens": config.max_position_embeddings,
        "longest_window_seconds": round(longest, 3),
        "cache_bytes_per_second_of_audio": round(2 * tokens * cache),
        "weights_bytes": parameters * dtype.itemsize + codec_parameters * 4,
        "memory_bytes_for_one_window": round(
            parameters * dtype.itemsize + codec_parameters * 4 + 2 * tokens * cache * window
        ),
        "training_flops_per_token": round(training_flops_per_token(config)),
        "training_bytes_for_one_context": training["state"] + training["activations"],
        "training_bytes_with_checkpointing": training["state"] + training["activations_checkpointed"],
    }


def _codec_config(path: str | None):
    """The configuration of the codec beside a model, or of the released one where there is none."""
    from transformers import DacConfig
    from transformers.utils import cached_file

    missing_is_none = {"_raise_exceptions_for_missing_entries": False}
    if path and cached_file(path, "config.json", subfolder="audio_tokenizer", **missing_is_none):
        return DacConfig.from_pretrained(path, subfolder="audio_tokenizer")
    return DacConfig(sampling_rate=44100)
