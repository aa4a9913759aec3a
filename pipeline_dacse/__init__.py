"""Audio of any length and any kind in, enhanced audio out."""

from pipeline_dacse.pipeline_dacse import AudioEnhancementPipeline

__all__ = ["AudioEnhancementPipeline"]
