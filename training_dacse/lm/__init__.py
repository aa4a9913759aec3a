"""The language model's training: what is minimised, on which clips in which order, in which stages. Knows no audio."""
