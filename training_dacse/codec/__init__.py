"""Trains small codecs (`DacModel`): where they start, codebooks, losses, discriminators, the loop."""
