"""DAC-SE1 speech enhancement for the Hugging Face ecosystem.

`import dacse` registers the configuration, model, processor and pipeline with transformers:

    import dacse
    from transformers import pipeline

    enhance = pipeline("audio-enhancement")  # the embedded model
    out = enhance("noisy.wav")  # {"audio": float32 (sample,), "sampling_rate": 44100}
"""

import importlib
from importlib.metadata import version
from typing import Any

from dacse.registration import default_model, register

_HOMES = {
    "AudioEnhancementPipeline": "pipeline_dacse",
    "DacSeConfig": "modeling_dacse",
    "DacSeForEnhancement": "modeling_dacse",
    "DacSeProcessor": "processing_dacse",
    "EnhanceOptions": "pipeline_dacse",
    "Enhancer": "pipeline_dacse",
    "Int8Config": "modeling_dacse.fast.int8",
}

__version__ = version("dacse")
__all__ = ["__version__", "default_model", "register", *_HOMES]

register()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
