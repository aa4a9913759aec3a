"""The language model of DAC-SE1: its configuration, its weights and its generation on the codebook grid."""

from .configuration_dacse import DacSeConfig
from .modeling_dacse import DacSeForEnhancement

__all__ = ["DacSeConfig", "DacSeForEnhancement"]
