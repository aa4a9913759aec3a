"""The order in which a run meets its clips: as they come, tasks in equal shares, easy ones first. Knows no audio."""

import torch
from torch import Tensor
from torch.utils.data import Sampler

EASIEST = 0.2  # share of each task's clips, highest ratio first, that a curriculum begins with


class TaskSampler(Sampler[int]):
    """Numbers of the rows of one epoch, a pure function of (seed, epoch): a resumed run meets the same clips.

    Without a curriculum and unbalanced, every row once, shuffled. Otherwise rows are drawn with replacement.

    Args:
        task_numbers: task of every row, (row,).
        snr_db: lowest ratio of every row, (row,); the higher, the easier.
        seed: of the order.
        balanced: draw every task equally often, however many rows it has.
        curriculum_examples: number of draws, counted over all epochs, after which the hardest rows are open; 0 for no
            curriculum.
    """

    def __init__(
        self,
        task_numbers: Tensor,
        snr_db: Tensor,
        seed: int = 0,
        balanced: bool = False,
        curriculum_examples: int = 0,
    ):
        self.seed, self.balanced, self.curriculum_examples, self.epoch = seed, balanced, curriculum_examples, 0
        order = torch.argsort(snr_db, descending=True, stable=True)
        self.by_task = [order[task_numbers[order] == task] for task in task_numbers.unique()]
        self.length = len(task_numbers)

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def open_share(self) -> Tensor:
        """Share of each task's rows that is open at every draw of this epoch, (draw,)."""
        draws = self.epoch * self.length + torch.arange(self.length)
        progress = (draws / self.curriculum_examples).clamp(max=1.0)
        return EASIEST + (1 - EASIEST) * progress

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if not self.balanced and not self.curriculum_examples:
            return iter(torch.randperm(self.length, generator=generator).tolist())
        counts = torch.tensor([len(rows) for rows in self.by_task], dtype=torch.float)
        shares = torch.ones_like(counts) if self.balanced else counts
        task = torch.multinomial(shares, self.length, replacement=True, generator=generator)
        open_share = self.open_share() if self.curriculum_examples else torch.ones(self.length)
        open_rows = (open_share * counts[task]).ceil()
        place = (torch.rand(self.length, generator=generator) * open_rows).long()
        return iter([self.by_task[number][row].item() for number, row in zip(task.tolist(), place, strict=True)])
