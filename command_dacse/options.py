"""Options of a command that can be seen to be wrong before torch, let alone a model, is loaded. Knows no torch."""

from __future__ import annotations

import math
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from command_dacse.engine import EngineSettings

SERVED_WINDOWS = 64  # that a server is asked for at a time, unless somebody says how many
DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa")
# Of options that are numbers, as `EnhanceOptions` has them.
RANGES = {
    "strength": (lambda value: 0 <= value <= 1, "a number from 0 (the input) to 1 (enhanced)"),
    "window_seconds": (lambda value: 0 < value < math.inf, "a number of seconds"),
    "overlap_seconds": (lambda value: 0 <= value < math.inf, "a number of seconds"),
    "batch_size": (lambda value: 1 <= value <= 2**31, "a whole number of windows, at least 1"),
    "candidates": (lambda value: 1 <= value <= 2**31, "a whole number of answers to a window, at least 1"),
    "seed": (lambda value: -(2**63) <= value < 2**64, "any number of 64 bits"),
}


def check_options(settings: EngineSettings) -> None:
    """Raises ValueError for the first option that cannot be meant, whatever the machine and the model."""
    for name, (is_right, remedy) in RANGES.items():
        value = settings.options[name]
        if value is not None and not is_right(value):
            raise ValueError(f"{name} is {value}; give {remedy}")
    device = settings.device
    if device is not None and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", device):
        raise ValueError(f"device is {device!r}; give {', '.join(DEVICES[:3])}, ..., or one of several: cuda:1")
    for place in filter(None, (settings.model, settings.codec)):
        check_model(place)
    if "adapter" in settings.options:
        _check_adapter(settings.options["adapter"], settings.model)


def parse_shard(text: str) -> tuple[int, int]:
    """Which part of all work, from 1, and of how many.

    >>> parse_shard("2/8")
    (2, 8)

    Raises:
        ValueError: It is no such part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard is {text!r}; give N/M with N from 1 to M, such as 1/4 for the first of four parts")
    return int(found[1]), int(found[2])


def check_tables(wanted: bool) -> None:
    """Raises ValueError if tables are read or written, and nothing is installed that does it."""
    if wanted and not find_spec("pyarrow"):
        raise ValueError("tables and --report need pyarrow; pip install pyarrow, or 'dacse[ray]' with all of --ray")


def check_served(server: str | None, adapter: str | None, int8: bool) -> None:
    """Raises ValueError for what cannot be asked of a server."""
    if server is None:
        return
    if not server.startswith(("http://", "https://")):
        raise ValueError(f"server is {server!r}; give an address such as http://127.0.0.1:8000")
    for name, given in (("--adapter", adapter is not None), ("--int8", int8)):
        if given:
            raise ValueError(f"{name} is for weights that are loaded here; leave it out, or --server")


def check_shared(ray: str | None, device: str | None, has_standard: bool) -> None:
    """Raises ValueError for what cannot be shared out among the workers of a cluster."""
    if ray is not None and has_standard:
        raise ValueError("standard input and output are this process's; with --ray give files")
    if ray is not None and device is not None and ":" in device:
        raise ValueError(
            f"device is {device!r}; with --ray every worker has one of its own: give {device.split(':')[0]}"
        )


def check_model(place: str) -> None:
    """Raises OSError or ValueError unless `place` holds a configuration, or is an id on a Hub that answers."""
    from hub_upload.places import check_hub, check_place

    check_place(place)
    if not os.path.isdir(place):
        check_hub(place)
    configurations = ("config.json", "adapter_config.json")
    if os.path.isdir(place) and not any(os.path.isfile(os.path.join(place, name)) for name in configurations):
        raise ValueError(f"{place} has no config.json; give the directory of a model, or a Hub id")


def _check_adapter(adapter: str, model: str) -> None:
    from hub_upload.places import check_hub

    if os.path.isfile(os.path.join(adapter, "adapter_config.json")):
        return
    if re.fullmatch(r"[\w.-]+/[\w.-]+", adapter):
        if not os.path.isdir(adapter):
            check_hub(adapter, "adapter_config.json")
        return
    known = sorted(path.parent.name for path in Path(model).glob("adapters/*/adapter_config.json"))
    if os.path.isfile(os.path.join(model, "config.json")) and adapter not in known:
        names = ", ".join(known) or "none"
        raise ValueError(f"adapter {adapter!r} is unknown; {model} has {names}; or give a directory or Hub id")
