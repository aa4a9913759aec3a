"""Makes transformers know our classes: the Auto classes and `pipeline("audio-enhancement")`."""

import logging

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import dacse
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import AudioEnhancementPipeline
from pipeline_dacse.pipeline_dacse import TASK
from processing_dacse import DacSeProcessor


def register() -> None:
    """Registers everything; once is enough, and a second time changes nothing."""
    AutoConfig.register(DacSeConfig.model_type, DacSeConfig, exist_ok=True)
    AutoModel.register(DacSeConfig, DacSeForEnhancement, exist_ok=True)
    AutoModelForCausalLM.register(DacSeConfig, DacSeForEnhancement, exist_ok=True)
    AutoProcessor.register(DacSeConfig, DacSeProcessor, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=AudioEnhancementPipeline,
            pt_model=DacSeForEnhancement,
            default={"model": (dacse.default_model(), "main")},
            type="audio",
        )
        logging.getLogger("transformers.pipelines").addFilter(_is_no_advice_against_our_default)


def _is_no_advice_against_our_default(record: logging.LogRecord) -> bool:
    """Keeps `pipeline("audio-enhancement")` quiet: a default inside this package cannot change under its user.

    transformers advises against any default, as the ones it knows lie on the Hub.
    """
    return f"defaulted to {dacse.default_model()} " not in record.getMessage()
