"""Makes transformers know our classes: the Auto classes, `pipeline("audio-enhancement")` and weights of 8 bits."""

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import modeling_dacse.fast.int8  # noqa: F401  registers its quantizer
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse.pipeline_dacse import TASK, AudioEnhancementPipeline
from processing_dacse import DacSeProcessor


def default_model() -> str:
    """Directory of the embedded model, laid out as a Hub repository."""
    return str(Path(__file__).parent / "tiny")


def register() -> None:
    """Registers everything; once is enough, and a second time changes nothing. `import dacse` has done it."""
    AutoConfig.register(DacSeConfig.model_type, DacSeConfig, exist_ok=True)
    AutoModel.register(DacSeConfig, DacSeForEnhancement, exist_ok=True)
    AutoModelForCausalLM.register(DacSeConfig, DacSeForEnhancement, exist_ok=True)
    AutoProcessor.register(DacSeConfig, DacSeProcessor, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=AudioEnhancementPipeline,
            pt_model=DacSeForEnhancement,
            default={"model": (default_model(), "main")},
            type="audio",
        )
