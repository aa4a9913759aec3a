"""Whether a model and a processor belong together, and which processor a model has. Knows configurations and places."""

import os

from transformers import AutoProcessor, DacModel, PreTrainedModel, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from .adapters_dacse import Place

DEFAULT_CODEC = "descript/dac_44khz"  # what the released checkpoint speaks
DEFAULT_CODEC_LAYOUT = (9, 1024)  # codebooks, codes in each
TOKEN_LAYOUT = (
    "num_codebooks",
    "codebook_size",
    "first_code_id",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "start_clean_token_id",
    "unk_token_id",
)


def check_model(model: PreTrainedModel) -> None:
    """Refuses what is none of our models.

    Raises:
        ValueError: If it is of another architecture.
    """
    if model.config.model_type != "dacse":
        raise ValueError(
            f"{model_name(model)} is a {model.config.model_type} model of {model.config.vocab_size} ids;"
            " audio-enhancement takes a dacse model, or the directory of a plain Llama of the released token layout"
            " (9221 ids)"
        )


def check_layout(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Refuses a model and a processor that do not speak one token layout.

    Raises:
        ValueError: If a number differs, or the processor's window does not fit the model's context.
    """
    for name in (*TOKEN_LAYOUT, "pattern"):
        ours, theirs = getattr(model.config, name), getattr(processor, name)
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours} in {model_name(model)} and {theirs} in its processor; give the processor and codec"
                " the model was trained with"
            )
    window, longest = processor.window_frames, model.config.max_frames
    if window is not None and not 1 <= window <= longest:
        raise ValueError(
            f"window_frames is {window} in the processor, but the context of {model_name(model)} holds 1 to {longest}"
            " frames"
        )


def find_processor(model: PreTrainedModel) -> ProcessorMixin:
    """The processor beside the model; where there is none, a new one around the released codec.

    `transformers.pipeline` hides why a processor did not load: loading it again here shows the error.

    Raises:
        ValueError: If the repository has no processor, and the released codec does not fit its model.
        OSError: If the repository cannot be reached.
    """
    place = Place.of_model(model)
    if place.find("processor_config.json"):
        trusted = type(model).__module__.startswith("transformers_modules")  # the user trusted the model's code
        where = {"subfolder": place.folder, "revision": place.revision or "main", "trust_remote_code": trusted}
        return AutoProcessor.from_pretrained(place.root, **where)
    layout = (model.config.num_codebooks, model.config.codebook_size)
    if layout != DEFAULT_CODEC_LAYOUT:
        raise ValueError(
            f"{model_name(model)} has no processor, and {DEFAULT_CODEC} has not its {layout[0]} codebooks of"
            f" {layout[1]} codes; pass codec="
        )
    return new_processor(model, DEFAULT_CODEC)


def new_processor(model: PreTrainedModel, codec: DacModel | str | os.PathLike) -> ProcessorMixin:
    """A processor around a codec (a `DacModel`, or the directory or Hub id of one), for the model's token layout."""
    layout = {name: getattr(model.config, name) for name in TOKEN_LAYOUT}
    return PROCESSOR_MAPPING[type(model.config)].from_codec(codec, **layout)


def model_name(model: PreTrainedModel) -> str:
    """Where a model came from, for messages."""
    return model.config._name_or_path or "the model"
