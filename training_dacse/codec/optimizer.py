"""One optimizer out of two: Muon for convolutions between many channels, AdamW for all else. Knows no loss."""

import torch
from torch import nn

BETAS = (0.8, 0.99)  # of AdamW (DAC, arXiv 2306.06546, section 4.2)
MOMENTUM = 0.9  # of Muon
WEIGHT_DECAY = 0.1  # of Muon (arXiv 2502.16982, section 2.2): without it, matrices grow with every step
NARROW = 16  # channels; convolutions with so few on either side are left to AdamW


class CodecOptimizer:
    """Updates the trained parameters of a module at a common learning rate.

    Muon (https://kellerjordan.github.io/posts/muon) orthogonalizes the update of a matrix. A convolution's is the
    matrix (out, in * kernel), and its root mean square is about what AdamW's would be at 2/3 of the learning rate.

    Args:
        module: its parameters stay where they are in memory from now on.
        learning_rate: of AdamW.
        matrix_learning_rate: of Muon; its updates have a fifth of it as root mean square (arXiv 2502.16982).
    """

    def __init__(self, module: nn.Module, learning_rate: float, matrix_learning_rate: float):
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.convolutions = [each for each in trained if each.ndim == 3 and min(each.shape[:2]) > NARROW]
        wide = {id(parameter) for parameter in self.convolutions}
        self.matrices = [nn.Parameter(convolution.detach().flatten(1)) for convolution in self.convolutions]
        rest = [parameter for parameter in trained if id(parameter) not in wide]
        self.parts = {"adamw": torch.optim.AdamW(rest, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True)}
        if self.matrices:
            self.parts["muon"] = torch.optim.Muon(
                self.matrices,
                lr=matrix_learning_rate,
                weight_decay=WEIGHT_DECAY,
                momentum=MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
        self.peaks = {name: part.param_groups[0]["lr"] for name, part in self.parts.items()}

    def step(self, share: float) -> None:
        """Updates the parameters by their gradients, which are then gone, at this share of the learning rates."""
        for matrix, convolution in zip(self.matrices, self.convolutions, strict=True):
            matrix.grad = None if convolution.grad is None else convolution.grad.flatten(1)
            convolution.grad = None
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = share * self.peaks[name]
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict]:
        """That of both."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Takes over such a state."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
