"""Weights for the losses of tasks that pull unevenly: fixed, uncertainty, GradNorm, dynamic weight average.

Each is a callback that is told the mean loss of every task after each optimizer step and holds `weights` (task,); its
state travels in the checkpoint's `trainer_state.json`. Knows numbers only; no data. A new one is a class in this file
and its name in `WEIGHTINGS`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Weighting(TrainerCallback, ExportableState):
    """Equal weights that never change; the others subclass it.

    Args:
        tasks: whose losses are weighted, by their numbers.
    """

    remembered: tuple[str, ...] = ()  # tensors that a checkpoint must hold
    is_trivial = True  # nothing is to be weighted or told
    needs_whole_layers = False

    def __init__(self, tasks: Sequence[str]):
        self.tasks, self.weights = list(tasks), torch.ones(len(tasks))

    def gradient_norms(self, model: nn.Module, task: Tensor, token_loss: Tensor) -> Tensor | None:
        """What `update` is to be told of a batch's gradients, (task,), for those that ask for it."""
        return None

    def update(self, losses: Tensor, present: Tensor, gradient_norms: Tensor | None = None) -> None:
        """Moves the weights after a step.

        Args:
            losses: mean loss of each task in the step, (task,).
            present: which tasks had any clip in it, (task,).
            gradient_norms: norm of each task's unweighted gradient at a layer that all share, (task,).
        """

    def state(self) -> dict:
        return {"args": {}, "attributes": {name: getattr(self, name).tolist() for name in self.remembered}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        for name, value in saved.items():
            setattr(self, name, torch.tensor(value))


class FixedWeights(Weighting):
    """Weights that somebody chose.

    Args:
        tasks: as in `Weighting`.
        weights: by task; 1 where left out.

    Raises:
        ValueError: a task that is not there, or a weight below 0.
    """

    is_trivial = False

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]):
        super().__init__(tasks)
        for task, weight in weights.items():
            if task not in self.tasks or weight < 0:
                raise ValueError(
                    f"weight of task {task!r} is {weight}; the tasks are {', '.join(tasks)}, none below 0"
                )
            self.weights[self.tasks.index(task)] = weight


class Uncertainty(Weighting):
    """Homoscedastic uncertainty (Kendall, Gal, Cipolla 2018, arXiv 1705.07115, eq. 10 with s = log sigma^2).

    Minimises `exp(-s) * loss + s / 2` over s by gradient descent, task by task; the weight is `exp(-s)`. With a
    constant loss it settles at `exp(-s) = 1 / (2 loss)`.
    """

    remembered = ("log_variance", "weights")
    is_trivial = False

    def __init__(self, tasks: Sequence[str], learning_rate: float = 0.05):
        super().__init__(tasks)
        self.learning_rate, self.log_variance = learning_rate, torch.zeros(len(tasks))

    def update(self, losses, present, gradient_norms=None):
        slope = 0.5 - torch.exp(-self.log_variance) * losses
        self.log_variance = self.log_variance - self.learning_rate * torch.where(present, slope, 0.0)
        self.weights = torch.exp(-self.log_variance)


class GradNorm(Weighting):
    """GradNorm (Chen et al. 2018, arXiv 1711.02257, algorithm 1).

    Moves the weights so that the weighted gradient norms meet `mean norm * (relative inverse training rate) ** alpha`;
    they always sum to the number of tasks. Equal training rates end at weights inverse to the gradient norms.
    """

    remembered = ("first_losses", "weights")
    needs_whole_layers = True
    is_trivial = False

    def __init__(self, tasks: Sequence[str], alpha: float = 1.5, learning_rate: float = 0.025):
        super().__init__(tasks)
        self.alpha, self.learning_rate = alpha, learning_rate
        self.first_losses = torch.full((len(tasks),), float("nan"))

    def gradient_norms(self, model, task, token_loss):
        shared, norms = last_trained(model), torch.zeros(len(self.tasks), device=token_loss.device)
        for number in task.unique().tolist():
            mean = token_loss[task == number].mean()
            gradients = torch.autograd.grad(mean, shared, retain_graph=True)
            norms[number] = torch.stack([gradient.norm() for gradient in gradients]).norm()
        return norms

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


class DynamicWeightAverage(Weighting):
    """Dynamic weight average (Liu, Johns, Davison 2019, arXiv 1803.10704, eq. 7).

    The weight of a task is a softmax, at temperature 2, over how its loss changed between the last two periods; the
    weights sum to the number of tasks. The paper's period is an epoch; here it is `period` steps,
    few enough that short runs have several.
    """

    remembered = ("total", "count", "steps", "last", "before", "weights")
    is_trivial = False

    def __init__(self, tasks: Sequence[str], period: int = 20, temperature: float = 2.0):
        super().__init__(tasks)
        self.period, self.temperature = period, temperature
        self.total, self.count = torch.zeros(len(tasks)), torch.zeros(len(tasks))
        self.last = self.before = torch.full((len(tasks),), float("nan"))
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


WEIGHTINGS: dict[str, type[Weighting]] = {
    "equal": Weighting,
    "fixed": FixedWeights,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "dwa": DynamicWeightAverage,
}


def last_trained(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices of the last projection that has any: in a whole model one, in an adapter two.

    Raises:
        ValueError: nothing is trained in the last layer.
    """
    layers = next(module for name, module in model.named_modules() if name.endswith(".layers"))
    trained = [(name, weight) for name, weight in layers[-1].named_parameters() if weight.requires_grad]
    matrices = [(name, weight) for name, weight in trained if weight.dim() == 2]
    if not matrices:
        raise ValueError("no matrix of the last layer is trained; gradnorm has nothing to measure at")
    projection = matrices[-1][0].split(".lora_")[0]
    return [weight for name, weight in matrices if name.startswith(projection)]
