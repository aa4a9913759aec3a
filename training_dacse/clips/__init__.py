"""Waveforms to train on: recordings, what spoils them, how often, and the pairs that come out. Knows no token."""
