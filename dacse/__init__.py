"""DAC-SE1 speech enhancement for the Hugging Face ecosystem.

`import dacse` registers the configuration, model, processor and pipeline with transformers:

    import dacse
    from transformers import pipeline

    enhance = pipeline("audio-enhancement")  # the embedded model
    out = enhance("noisy.wav")  # {"audio": float32 (sample,), "sampling_rate": 44100}
"""

import importlib
import sys
from pathlib import Path

PUBLIC_NAMES = {
    "AudioEnhancementPipeline": "pipeline_dacse",
    "DacSeConfig": "modeling_dacse",
    "DacSeForEnhancement": "modeling_dacse",
    "DacSeProcessor": "processing_dacse",
}

__all__ = ["default_model", "register", *PUBLIC_NAMES]


def default_model() -> str:
    """Directory of the embedded model, laid out as a Hub repository."""
    return str(Path(__file__).parent / "tiny")


def register() -> None:
    """Makes transformers' Auto classes and `pipeline` know this package. `import dacse` has done it."""
    from dacse.registration import register

    register()


def __getattr__(name: str):
    if name in PUBLIC_NAMES:
        return getattr(importlib.import_module(PUBLIC_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_command() -> bool:
    """Whether this process is the `dacse` command, which answers `--help` without loading transformers."""
    return Path(sys.argv[0]).stem == "dacse" or sys.orig_argv[1:3] == ["-m", "dacse"]


if not _is_command():
    register()
