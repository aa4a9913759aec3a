"""Adapters of a model: found, loaded, and switched for the length of a block. Knows weights and places, no audio.

Works on the layers that PEFT puts into a model, so that it does not matter whether the model is bare, was loaded with
an adapter by the library, or comes out of a `PeftModel`. PEFT itself is imported once an adapter is asked for.
"""

import logging
import os
import re
import warnings
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import list_repo_files
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .options_dacse import Own

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Place(NamedTuple):
    """A directory, or a Hub repository, and a folder in it."""

    root: str
    folder: str = ""
    revision: str | None = None  # of a repository

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> "Place":
        """Where a model was loaded from, at the revision it was loaded at; its root is empty if it was not."""
        path = model.config._name_or_path or ""
        if os.path.isdir(path):
            return cls(os.path.abspath(path))
        owner_name, folder = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
        return cls(owner_name, folder, getattr(model.config, "_commit_hash", None))

    def joined(self, *folders: str) -> "Place":
        """A folder in it."""
        return self._replace(folder="/".join(filter(None, (self.folder, *folders))))

    def find(self, name: str) -> str | None:
        """The path of a file in it on this machine, downloaded if need be, or None.

        Raises:
            OSError: If a repository cannot be reached.
        """
        if not self.root:
            return None
        if os.path.isdir(self.root):
            path = os.path.join(self.root, self.folder, name)
            return path if os.path.isfile(path) else None
        return cached_file(
            self.root,
            name,
            subfolder=self.folder,
            revision=self.revision,
            _raise_exceptions_for_missing_entries=False,
        )

    def __bool__(self) -> bool:
        return bool(self.root)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.root, self.folder)))


class Adapters:
    """The adapters of one model, under the names and places that calls give them.

    Args:
        model: Its layers are changed in place; adapters stay loaded.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.place = model, Place.of_model(model)
        self.loaded: dict[str, tuple[str, object]] = {}  # by what was asked for: name in the model, state of the files

    @contextmanager
    def using(self, adapter: str | os.PathLike | None | Own) -> Generator[None]:
        """Runs the block with an adapter, or with None on the base weights; afterwards all is as it was.

        With `Own.ADAPTERS` nothing is switched.

        Args:
            adapter: The name of one that the model holds, or of a folder under the model's `adapters/`; a directory;
                or a Hub id. They are looked for in this order.

        Raises:
            ValueError: If there is no such adapter, or it does not fit the model; the message says which there are.
        """
        if adapter is Own.ADAPTERS:
            yield
            return
        before = {layer: (layer.disable_adapters, layer.active_adapters) for layer in tuner_layers(self.model)}
        flags = [(weights, weights.requires_grad) for weights in self.model.parameters()]
        try:
            name = None if adapter is None else self._name(adapter)
            for layer in tuner_layers(self.model):
                layer.enable_adapters(name is not None)
                if name is not None:
                    layer.set_adapter(name, inference_mode=True)
            yield
        finally:
            for layer in tuner_layers(self.model):
                is_disabled, active = before.get(layer, (False, []))  # a layer that is new had none
                layer.set_adapter(active)
                layer.enable_adapters(not is_disabled)
            for weights, flag in flags:
                weights.requires_grad_(flag)

    def _name(self, adapter: str | os.PathLike) -> str:
        """The name in the model of an adapter, which is loaded the first time, and again once its files change."""
        key = os.fspath(adapter)
        if key not in self.loaded and isinstance(adapter, str) and adapter in getattr(self.model, "peft_config", {}):
            return adapter  # loaded by the caller
        place = self._find(adapter)
        if place is None:
            raise ValueError(
                f"adapter {key!r} is unknown; {self.place or 'the model'} has "
                f"{', '.join(self._known()) or 'none'}; or give a directory or Hub id"
            )
        config, weights = place.find(CONFIG), place.find(WEIGHTS)
        if weights is None:
            raise ValueError(f"adapter {place} has no {WEIGHTS}: save it with safetensors")
        stamp = [
            (os.path.realpath(path), os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in (config, weights)
        ]
        name, old_stamp = self.loaded.get(key, (module_name(key), None))
        if stamp != old_stamp:
            if old_stamp is not None:
                self._remove(name)
            self._load(name, place, os.path.dirname(config), weights)
            self.loaded[key] = name, stamp
        return name

    def _find(self, adapter: str | os.PathLike) -> Place | None:
        text = os.fspath(adapter)
        if isinstance(adapter, str) and re.fullmatch(r"[\w.-]+", text) and text not in (".", ".."):
            own = self.place.joined("adapters", text)
            if own.find(CONFIG):
                return own
        if os.path.isfile(os.path.join(text, CONFIG)):
            return Place(os.path.abspath(text))
        if isinstance(adapter, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not os.path.isdir(text):
            hub = Place(text)
            return hub if hub.find(CONFIG) else None
        return None

    def _load(self, name: str, place: Place, folder: str, weights: str) -> None:
        from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

        config = PeftConfig.from_pretrained(folder)
        if getattr(config, "modules_to_save", None):
            raise ValueError(
                f"adapter {place} replaces whole layers ({', '.join(config.modules_to_save)}), which cannot be"
                " switched from call to call: merge it with `dacse convert --adapter`"
            )
        config.inference_mode = True
        try:
            with warnings.catch_warnings(), _quiet("peft"):
                warnings.simplefilter("ignore")  # several adapters are meant
                state = load_file(weights, device=str(self.model.device))
                inject_adapter_in_model(config, self.model, name)
                result = set_peft_model_state_dict(self.model, state, name)
                self.model.train(self.model.training)  # the new layers' dropout as well
            lacking = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
            if wrong := [*lacking, *result.unexpected_keys]:
                raise ValueError(f"{len(wrong)} weights such as {wrong[0]}")
        except SafetensorError as error:
            raise ValueError(f"the weights of adapter {place} are damaged ({error}): get them again") from error
        except (RuntimeError, ValueError) as error:
            self._remove(name)
            fault = "weights of other sizes" if isinstance(error, RuntimeError) else str(error)
            raise ValueError(
                f"adapter {place} does not fit {self.place or 'the model'}: {fault}; give the model it was trained on"
            ) from error

    def _remove(self, name: str) -> None:
        for layer in tuner_layers(self.model):
            layer.delete_adapter(name)
        getattr(self.model, "peft_config", {}).pop(name, None)

    def _known(self) -> list[str]:
        place = self.place.joined("adapters")
        if not place.root:
            files = []
        elif os.path.isdir(place.root):
            files = [path.as_posix() for path in Path(place.root).glob(f"{place.folder}/*/{CONFIG}")]
        else:
            try:
                files = list_repo_files(place.root, revision=place.revision)
            except (OSError, HTTPError):  # no network: what is loaded is known all the same
                files = []
        pattern = rf"(?:.*/)?{re.escape(place.folder)}/([^/]+)/{re.escape(CONFIG)}"
        beside = {match[1] for file in files if (match := re.fullmatch(pattern, file))}
        return sorted({*getattr(self.model, "peft_config", {}), *beside})


def tuner_layers(model: nn.Module) -> Iterator["BaseTunerLayer"]:
    """The layers of a model that hold adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def module_name(adapter: str) -> str:
    """A name for the submodules that PEFT adds, another for every adapter.

    >>> module_name("denoise"), module_name("user/lora"), module_name("user_lora")
    ('denoise', 'user_lora_b7d0fd06', 'user_lora')
    """
    name = re.sub(r"\W", "_", adapter)
    return name if name == adapter else f"{name}_{zlib.crc32(adapter.encode()):08x}"


@contextmanager
def _quiet(library: str) -> Generator[None]:
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
