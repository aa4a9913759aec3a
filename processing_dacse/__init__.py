"""Audio in, token ids out, and back; owns the codec. Knows no language model."""

from .processing_dacse import DacSeProcessor

__all__ = ["DacSeProcessor"]
