"""Audio of any length and any kind in, enhanced audio out."""

import importlib
from typing import Any

_HOMES = {
    "AudioEnhancementPipeline": "pipeline_dacse.pipeline_dacse",
    "EnhanceOptions": "pipeline_dacse.options_dacse",
    "Enhancer": "pipeline_dacse.engine_dacse",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """The engine without the library's pipelines, which take longer to import than it does."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
