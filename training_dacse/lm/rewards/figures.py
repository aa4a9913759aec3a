"""Means of named figures over batches and processes. Knows numbers."""

import numpy as np
import torch
from accelerate import Accelerator


class Means:
    """Adds up figures by name until they are read; nan is left out."""

    def __init__(self):
        self.sums: dict[str, np.ndarray] = {}  # sum and count

    def add(self, name: str, values: np.ndarray) -> None:
        """Adds values (any shape) of a figure."""
        known = values[~np.isnan(values)]
        self.sums[name] = self.sums.get(name, 0) + np.array([known.sum(), known.size], dtype=np.float64)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last reading, over all processes, each of which has added the same figures."""
        names = sorted(self.sums)
        if not names:
            return {}
        sums = torch.from_numpy(np.stack([self.sums[name] for name in names]))
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
        self.sums.clear()
        return {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
