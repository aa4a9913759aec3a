"""What fine-tuning on one task does to the others: a matrix of held-out losses. Knows names and numbers only."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from ..files import write_json


@dataclass
class ForgettingMatrix:
    """Held-out loss of every task (columns) after every sub-stage (rows); the first row is before any."""

    tasks: list[str]
    stages: list[str] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)  # (stage, task)

    def add(self, stage: str, losses: dict[str, float]) -> None:
        """Appends the row of a sub-stage."""
        self.stages.append(stage)
        self.losses.append([losses[task] for task in self.tasks])

    def forgetting(self) -> dict[str, float]:
        """How far each task's last loss lies above its lowest (Chaudhry et al. 2018, arXiv 1801.10112, eq. 3).

        >>> ForgettingMatrix(["a", "b"], ["start", "a"], [[3.0, 2.0], [1.0, 2.5]]).forgetting()
        {'a': 0.0, 'b': 0.5}
        """
        columns = zip(self.tasks, zip(*self.losses, strict=True), strict=True)
        return {task: column[-1] - min(column) for task, column in columns}

    def save(self, folder: str | Path) -> None:
        """Writes `forgetting.json` and `forgetting.png`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"tasks": self.tasks, "stages": self.stages, "losses": self.losses, "forgetting": self.forgetting()}
        write_json(folder / "forgetting.json", content)
        self.draw().savefig(folder / "forgetting.png", dpi=120)

    def draw(self) -> Figure:
        """Losses as numbers, their change since the start as colours."""
        figure = Figure(figsize=(2 + len(self.tasks), 2 + 0.5 * len(self.stages)), layout="constrained")
        axes = figure.subplots()
        change = [[loss - first for loss, first in zip(row, self.losses[0], strict=True)] for row in self.losses]
        limit = max(max(map(abs, row)) for row in change) or 1.0
        image = axes.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_xticks(range(len(self.tasks)), self.tasks, rotation=45, ha="right")
        axes.set_yticks(range(len(self.stages)), self.stages)
        axes.set_xlabel("held-out task")
        axes.set_ylabel("after training on")
        for row, values in enumerate(self.losses):
            for column, value in enumerate(values):
                color = "white" if abs(change[row][column]) > 0.7 * limit else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
        figure.colorbar(image, label="change of the loss (nats per token)")
        return figure

    @classmethod
    def load(cls, folder: str | Path) -> "ForgettingMatrix":
        """Reads what `save` wrote."""
        content = json.loads((Path(folder) / "forgetting.json").read_text())
        return cls(content["tasks"], content["stages"], content["losses"])
