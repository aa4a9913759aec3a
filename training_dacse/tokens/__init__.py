"""Pairs turned into tokens: written in numbered shards, read in batches. Knows no degradation, no model."""
