"""Linear layers with matrices of 8 bits, for decoding on a CPU, which takes as long as its weights take to be read."""

import functools

import torch
from torch import nn


def quantize_rows(matrix: torch.Tensor, largest: int = 127) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each row of a matrix to -largest ... largest times a scale of its own: int8, and float32 scales (row, 1).

    >>> whole, scales = quantize_rows(torch.tensor([[127.0, -2.4], [0.0, 0.0]]))
    >>> whole.tolist(), scales.tolist()
    ([[127, -2], [0, 0]], [[1.0], [1.1754943508222875e-38]])
    """
    matrix = matrix.float()
    scales = (matrix.abs().amax(dim=1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return (matrix / scales).round().to(torch.int8), scales


@functools.cache
def largest_weight() -> int:
    """What weights are rounded to: x86 processors before VNNI add two products up in 16 bits, which 127 overflows."""
    rows = torch.full((1, 64), 127, dtype=torch.int8)
    return 127 if (multiply(rows, pack(rows), torch.ones(1)) == 64 * 127**2).all() else 63


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """An int8 matrix (output, input) as [`multiply`] reads it: on x86 for 2 to 16 rows up to three times faster."""
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if is_x86 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
        return torch.ops.onednn.qlinear_prepack(matrix, None)
    return matrix


def multiply(rows: torch.Tensor, matrix: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """int8 rows (row, input) times a packed matrix, each output times its scale (output): float32 (row, output)."""
    if not matrix.is_mkldnn:
        return torch._int_mm(rows, matrix.t()) * scales
    shifted = rows.view(torch.uint8) ^ 128  # by 128, for it takes no negative numbers; it undoes the shift itself
    no_shifts = torch.zeros(len(scales), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        shifted, 1.0, 128, matrix, scales, no_shifts, None, 1.0, 0, torch.float32, "none", [], ""
    )


class Int8Linear(nn.Module):
    """A linear layer in whole numbers: weights are rounded once, a scale for each output, and inputs as they come.

    A scale for each token's input keeps rows of a batch apart. Of random weights the output is off by one percent, on
    processors without VNNI by two.

    Args:
        linear (`nn.Linear`): Stays as it is; its bias is kept in full.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scales = quantize_rows(linear.weight.detach(), largest_weight())
        self.packed = pack(weight)  # no buffer: it can neither be moved to another device nor saved
        self.register_buffer("scales", scales[:, 0], persistent=False)
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.device.type != "cpu":
            raise ValueError(f"a model in int8 runs on a CPU, not on {hidden.device}: load it in bfloat16 for that")
        rows, scales = quantize_rows(hidden.flatten(0, -2))
        product = (multiply(rows, self.packed, self.scales) * scales).to(hidden.dtype)
        product = product if self.bias is None else product + self.bias
        return product.view(*hidden.shape[:-1], -1)


def quantize_layers(layers: nn.Module) -> None:
    """Replaces every `nn.Linear` in some layers by an `Int8Linear`."""
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
