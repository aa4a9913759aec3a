"""Audio in, token ids out, and back; owns the codec. Knows no language model."""
