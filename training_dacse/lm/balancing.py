"""Weights for the losses of tasks that pull unevenly: uncertainty, GradNorm, dynamic weight average.

Each is a callback that is told the mean loss of every task after each optimizer step and holds `weights` (task,); its
state travels in the checkpoint's `trainer_state.json`. Knows numbers only; no model, no data.
"""

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Balancing(TrainerCallback, ExportableState):
    """Equal weights that never change; the others subclass it.

    Args:
        num_tasks: how many losses there are.
    """

    remembered: tuple[str, ...] = ()  # tensors that a checkpoint must hold
    needs_gradient_norms = False

    def __init__(self, num_tasks: int):
        self.weights = torch.ones(num_tasks)

    def update(self, losses: Tensor, present: Tensor, gradient_norms: Tensor | None = None) -> None:
        """Moves the weights after a step.

        Args:
            losses: mean loss of each task in the step, (task,).
            present: which tasks had any clip in it, (task,).
            gradient_norms: norm of each task's unweighted gradient at the last shared layer, (task,).
        """

    def state(self) -> dict:
        return {"args": {}, "attributes": {name: getattr(self, name).tolist() for name in self.remembered}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        for name, value in saved.items():
            setattr(self, name, torch.tensor(value))


class Uncertainty(Balancing):
    """Homoscedastic uncertainty (Kendall, Gal, Cipolla 2018, arXiv 1705.07115, eq. 10 with s = log sigma^2).

    Minimises `exp(-s) * loss + s / 2` over s by gradient descent, task by task; the weight is `exp(-s)`. With a
    constant loss it settles at `exp(-s) = 1 / (2 loss)`.
    """

    remembered = ("log_variance", "weights")

    def __init__(self, num_tasks: int, learning_rate: float = 0.05):
        super().__init__(num_tasks)
        self.learning_rate, self.log_variance = learning_rate, torch.zeros(num_tasks)

    def update(self, losses, present, gradient_norms=None):
        slope = 0.5 - torch.exp(-self.log_variance) * losses
        self.log_variance = self.log_variance - self.learning_rate * torch.where(present, slope, 0.0)
        self.weights = torch.exp(-self.log_variance)


class GradNorm(Balancing):
    """GradNorm (Chen et al. 2018, arXiv 1711.02257, algorithm 1).

    Moves the weights so that the weighted gradient norms meet `mean norm * (relative inverse training rate) ** alpha`;
    they always sum to the number of tasks. Equal training rates end at weights inverse to the gradient norms.
    """

    remembered = ("first_losses", "weights")
    needs_gradient_norms = True

    def __init__(self, num_tasks: int, alpha: float = 1.5, learning_rate: float = 0.025):
        super().__init__(num_tasks)
        self.alpha, self.learning_rate = alpha, learning_rate
        self.first_losses = torch.full((num_tasks,), float("nan"))

    def update(self, losses, present, gradient_norms=None):
        self.first_losses = torch.where(present & self.first_losses.isnan(), losses, self.first_losses)
        rates = losses[present] / self.first_losses[present]
        norms = gradient_norms[present]
        weighted = self.weights[present] * norms
        target = weighted.mean() * (rates / rates.mean()) ** self.alpha
        # gradient of sum |weighted - target| over the weights, the target held constant; norms relative to their mean
        # make the step independent of the scale of the loss
        slope = torch.sign(weighted - target) * norms / norms.mean()
        moved = self.weights.clone()
        moved[present] = (moved[present] - self.learning_rate * slope).clamp(min=1e-3)
        self.weights = moved * len(moved) / moved.sum()


class DynamicWeightAverage(Balancing):
    """Dynamic weight average (Liu, Johns, Davison 2019, arXiv 1803.10704, eq. 7).

    The weight of a task is a softmax, at temperature 2, over how its loss changed between the last two periods; the
    weights sum to the number of tasks. The paper's period is an epoch; here it is `period` steps,
    few enough that short runs have several.
    """

    remembered = ("total", "count", "steps", "last", "before", "weights")

    def __init__(self, num_tasks: int, period: int = 20, temperature: float = 2.0):
        super().__init__(num_tasks)
        self.period, self.temperature = period, temperature
        self.total, self.count = torch.zeros(num_tasks), torch.zeros(num_tasks)
        self.last = self.before = torch.full((num_tasks,), float("nan"))
        self.steps = torch.tensor(0)

    def update(self, losses, present, gradient_norms=None):
        self.total = self.total + torch.where(present, losses, 0.0)
        self.count = self.count + present
        self.steps = self.steps + 1
        if self.steps % self.period:
            return
        self.before, self.last = self.last, self.total / self.count
        self.total, self.count = torch.zeros_like(self.total), torch.zeros_like(self.count)
        ratio = torch.nan_to_num(self.last / self.before, nan=1.0)  # no two periods with this task yet
        self.weights = len(ratio) * torch.softmax(ratio / self.temperature, 0)


BALANCINGS = {"none": Balancing, "uncertainty": Uncertainty, "gradnorm": GradNorm, "dwa": DynamicWeightAverage}
