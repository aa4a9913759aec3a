"""Settings that name a kind of something, alone or with the kind's own settings. Knows no kind."""

import inspect
import json
from collections.abc import Mapping
from typing import Any


def read_kind(setting: str, value: dict | str, known: Mapping[str, type]) -> dict:
    """A setting as a dict of `kind` and what is that kind's own.

    >>> read_kind("weighting", "dwa", {"dwa": dict}), read_kind("weighting", '{"kind": "dwa"}', {"dwa": dict})
    ({'kind': 'dwa'}, {'kind': 'dwa'})

    Args:
        setting: its name, for messages.
        value: the name of a kind, or a dict (or one as JSON) with `kind`.
        known: kinds by name.

    Raises:
        ValueError: an unknown kind, or a setting that it does not have.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("{") else {"kind": value}
    kind = value.get("kind")
    if kind not in known:
        raise ValueError(f"{setting} is {kind!r}; choose one of {', '.join(known)}")
    own = [name for name in inspect.signature(known[kind]).parameters if name != "tasks"]
    if unknown := sorted(set(value) - {"kind", *own}):
        raise ValueError(f"{setting} {kind} has no setting {unknown[0]!r}; it has {', '.join(own) or 'none'}")
    return value


def make_kind(settings: dict, known: Mapping[str, type], *given: Any) -> Any:
    """The object that `read_kind`'s settings describe; `given` are its first arguments."""
    return known[settings["kind"]](*given, **{name: value for name, value in settings.items() if name != "kind"})
