"""Linear layers with matrices of 8 bits, for decoding on a CPU, which takes as long as its weights take to be read."""

import torch
from torch import nn


def quantize_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each row of a matrix to -127 ... 127 times a scale of its own: int8, and float32 scales (row, 1).

    >>> whole, scales = quantize_rows(torch.tensor([[127.0, -2.4], [0.0, 0.0]]))
    >>> whole.tolist(), scales.tolist()
    ([[127, -2], [0, 0]], [[1.0], [1.1754943508222875e-38]])
    """
    matrix = matrix.float()
    scales = (matrix.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (matrix / scales).round().to(torch.int8), scales


class Int8Linear(nn.Module):
    """A linear layer in whole numbers: weights are rounded once, a scale for each output, and inputs as they come.

    A scale for each token's input keeps rows of a batch apart. Of random weights the output is off by one percent.

    Args:
        linear (`nn.Linear`): Stays as it is; its bias is kept in full.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scales = quantize_rows(linear.weight.detach())
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scales", scales[:, 0], persistent=False)
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.device.type != "cpu":
            raise ValueError(f"a model in int8 runs on a CPU, not on {hidden.device}: load it in bfloat16 for that")
        rows, scales = quantize_rows(hidden.flatten(0, -2))
        product = (torch._int_mm(rows, self.weight.t()) * (scales * self.scales)).to(hidden.dtype)
        product = product if self.bias is None else product + self.bias
        return product.view(*hidden.shape[:-1], -1)


def quantize_layers(layers: nn.Module) -> None:
    """Replaces every `nn.Linear` in some layers by an `Int8Linear`."""
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
