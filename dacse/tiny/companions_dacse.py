"""Finds what belongs to a model and checks that it fits: processor and codec, adapters, device.

Knows directories, Hub repositories and configurations; knows no audio.
"""

import logging
import os
import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files
from safetensors import SafetensorError
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

logger = logging.getLogger(__name__)

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


def check_device(device: int | str | torch.device | None) -> None:
    """Raises ValueError unless the device is one of this machine's; `None` leaves the choice to transformers."""
    if device is None or device == -1:
        return
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown: {str(error).splitlines()[0]}") from error
    if device.type == "cpu":
        return
    backend = getattr(torch, device.type, None)  # torch.cuda, torch.mps, torch.xpu, ...
    if backend is None or not backend.is_available():
        raise ValueError(f"device {str(device)!r} is not available with torch {torch.__version__} here; use 'cpu'")
    if (device.index or 0) >= backend.device_count():
        raise ValueError(f"device {str(device)!r} is not here; {device.type} has {backend.device_count()}")


def check_dtype(dtype: str | torch.dtype | None) -> None:
    """Raises ValueError if `pipeline()`, which turns the names of dtypes into dtypes, left this one as it was."""
    if isinstance(dtype, str) and dtype != "auto":
        raise ValueError(f"dtype {dtype!r} is unknown; give 'auto', 'float32', 'bfloat16' or 'float16'")


def is_imitated(dtype: torch.dtype) -> bool:
    """Whether this CPU has no arithmetic in a dtype, so that torch imitates it, many times slower than float32."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    can_tell = dtype in supported and torch.backends.mkldnn.is_available()
    return can_tell and not getattr(torch.ops.mkldnn, supported[dtype])()


def warn_of_slow_dtype(model: PreTrainedModel) -> None:
    """Warns of a dtype that the model's CPU imitates."""
    if model.device.type == "cpu" and is_imitated(model.dtype):
        dtype = str(model.dtype).removeprefix("torch.")
        logger.warning("this CPU has no arithmetic in %s and imitates it: dtype='float32' is many times faster", dtype)


def check_model(model: PreTrainedModel) -> None:
    """Raises ValueError unless the model is one of ours."""
    if model.config.model_type != "dacse":
        raise ValueError(
            f"{_name(model)} is a {model.config.model_type} model of {model.config.vocab_size} ids; audio-enhancement"
            " takes a dacse model, or the directory of a plain Llama of the released token layout (9221 ids)"
        )


def check_layout(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Raises ValueError unless model and processor speak one token layout."""
    for name in TOKEN_LAYOUT:
        ours, theirs = getattr(model.config, name), getattr(processor, name)
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours} in {_name(model)} and {theirs} in its processor; give the processor and codec the"
                " model was trained with"
            )


def default_batch_size(model: PreTrainedModel) -> int:
    """Windows to enhance together when nobody says how many.

    More of them share each reading of the weights, until their keys and values are what is mostly read: no more than
    half a gigabyte of those on a CPU, half of the free memory on a GPU, and 64 windows on either.
    """
    config = model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    is_gpu = model.device.type == "cuda"
    memory = torch.cuda.mem_get_info(model.device)[0] // 2 if is_gpu else 2**29
    return max(1, min(64, memory // (token * config.max_position_embeddings)))


def find_processor(model: PreTrainedModel) -> ProcessorMixin:
    """The processor beside the model; where there is none, a new one around the released codec.

    `pipeline()` hides why a processor did not load: loading it again here shows the error.

    Raises:
        ValueError: the repository has no processor, and the released codec does not fit its model.
    """
    path, where = model.config._name_or_path, _hub_arguments(model)
    if path and cached_file(path, "processor_config.json", _raise_exceptions_for_missing_entries=False, **where):
        trusted = type(model).__module__.startswith("transformers_modules")  # the user trusted the model's code
        return AutoProcessor.from_pretrained(path, trust_remote_code=trusted, **where)
    layout = (model.config.num_codebooks, model.config.codebook_size)
    if layout != DEFAULT_CODEC_LAYOUT:
        raise ValueError(
            f"{_name(model)} has no processor, and {DEFAULT_CODEC} has not its {layout[0]} codebooks of {layout[1]}"
            " codes; pass codec="
        )
    return new_processor(model, DEFAULT_CODEC)


def new_processor(model: PreTrainedModel, codec) -> ProcessorMixin:
    """A processor around a codec (a `DacModel`, or the directory or Hub id of one), for the model's token layout."""
    layout = {name: getattr(model.config, name) for name in TOKEN_LAYOUT}
    return PROCESSOR_MAPPING[type(model.config)].from_codec(codec, **layout)


def use_adapter(model: PreTrainedModel, adapter: str | None) -> None:
    """Switches the model to an adapter, loading it the first time, or back to its base weights.

    Args:
        model: changed in place; adapters stay loaded.
        adapter: the name of a loaded one or of a folder under the model's `adapters/`, a directory, a Hub id, or None.

    Raises:
        ValueError: there is no such adapter; the message lists those there are.
    """
    loaded = getattr(model, "peft_config", {})
    if adapter is None:
        if loaded:
            model.disable_adapters()
        return
    name = adapter if adapter in loaded else _module_name(adapter)
    if name not in loaded:
        _load_adapter(model, name, _find_adapter(model, adapter))
    model.enable_adapters()
    model.set_adapter(name)


def _module_name(adapter: str) -> str:
    """A name for the submodules that PEFT adds, another for every adapter.

    >>> _module_name("denoise"), _module_name("user/lora"), _module_name("user_lora")
    ('denoise', 'user_lora_b7d0fd06', 'user_lora')
    """
    name = re.sub(r"\W", "_", adapter)
    return name if name == adapter else f"{name}_{zlib.crc32(adapter.encode()):08x}"


def _load_adapter(model: PreTrainedModel, name: str, place: dict[str, Any]) -> None:
    library = logging.getLogger("transformers.integrations.peft")
    level = library.level
    library.setLevel(logging.ERROR)  # it reports the weights of adapters that are already there as missing
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
            loaded = model.load_adapter(adapter_name=name, **place)
        wrong = [key for key in (*loaded.missing_keys, *loaded.unexpected_keys) if f".{name}." in key]
        if wrong:
            raise ValueError(f"{len(wrong)} weights such as {wrong[0]}")
    except Exception as error:
        if name in getattr(model, "peft_config", {}):
            model.delete_adapter(name)  # else what was loaded in part would be taken for it the next time
        where = place["peft_model_id"]
        if isinstance(error, SafetensorError):
            raise ValueError(f"the weights of adapter {where} are damaged ({error}): get them again") from error
        if isinstance(error, (RuntimeError, ValueError)):
            # The library's report of sizes, which names the weights, is among those silenced here.
            fault = "weights of other sizes" if isinstance(error, RuntimeError) else str(error)
            raise ValueError(
                f"adapter {where} does not fit {_name(model)}: {fault}; give the model it was trained on"
            ) from error
        raise
    finally:
        library.setLevel(level)


def _find_adapter(model: PreTrainedModel, adapter: str) -> dict[str, Any]:
    """Where an adapter lies, as arguments of `load_adapter`."""
    base, folder, where = model.config._name_or_path, f"adapters/{adapter}", _hub_arguments(model)
    if Path(adapter, "adapter_config.json").is_file():
        return {"peft_model_id": adapter}
    if base and "/" not in adapter and find_adapter_config_file(base, subfolder=folder, **where):
        return {"peft_model_id": base, "adapter_kwargs": {"subfolder": folder, **where}}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", adapter) and find_adapter_config_file(adapter):
        return {"peft_model_id": adapter}
    known = sorted({*getattr(model, "peft_config", {}), *_adapters_beside(base, where)})
    raise ValueError(
        f"adapter {adapter!r} is unknown; {_name(model)} has {', '.join(known) or 'none'}; or give a directory"
        " or Hub id"
    )


def _adapters_beside(base: str, where: dict[str, Any]) -> list[str]:
    """Names of the folders under a model's `adapters/`."""
    if not base or os.path.isdir(base):
        return [config.parent.name for config in Path(base).glob("adapters/*/adapter_config.json")]
    files = list_repo_files(base, revision=where.get("revision"), token=where.get("token"))
    matches = (re.fullmatch(r"adapters/([^/]+)/adapter_config.json", file) for file in files)
    return [match[1] for match in matches if match]


def _hub_arguments(model: PreTrainedModel) -> dict[str, Any]:
    """How the model was got from the Hub: what lies beside it is got in the same way, at the same revision."""
    return getattr(model, "hub_arguments", {})


def _name(model: PreTrainedModel) -> str:
    return model.config._name_or_path or "the model"
