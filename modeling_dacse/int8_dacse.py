"""Linear layers with matrices of 8 bits, for decoding on a CPU, which takes as long as its weights take to be read."""

import functools

import torch
from torch import nn

FEW_ROWS = 32  # of more, a matrix product in float32 is as fast
VECTOR = 16  # weights that `torch._weight_int8pack_mm` reads at once, also behind the end of a row


def quantize_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each row of a matrix to -127 ... 127 times a scale of its own: int8, and float32 scales (row, 1).

    >>> whole, scales = quantize_rows(torch.tensor([[127.0, -2.4], [0.0, 0.0]]))
    >>> whole.tolist(), scales.tolist()
    ([[127, -2], [0, 0]], [[1.0], [1.1754943508222875e-38]])
    """
    matrix = matrix.float()
    scales = (matrix.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (matrix / scales).round().to(torch.int8), scales


@functools.cache
def adds_in_32_bits() -> bool:
    """Whether products of whole numbers are right here: x86 processors before VNNI add two of them up in 16 bits."""
    rows = torch.full((1, 64), 127, dtype=torch.int8)
    return bool((multiply_whole(rows, pack(rows), torch.ones(1)) == 64 * 127**2).all())


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """An int8 matrix (output, input) as [`multiply_whole`] reads it: on x86 that is up to three times faster."""
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if is_x86 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
        return torch.ops.onednn.qlinear_prepack(matrix, None)
    return matrix


def multiply_whole(rows: torch.Tensor, matrix: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """int8 rows (row, input) times a packed matrix, each output times its scale (output): float32 (row, output)."""
    if not matrix.is_mkldnn:
        return torch._int_mm(rows, matrix.t()) * scales
    shifted = rows.view(torch.uint8) ^ 128  # by 128, for it takes no negative numbers; it undoes the shift itself
    no_shifts = torch.zeros(len(scales), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        shifted, 1.0, 128, matrix, scales, no_shifts, None, 1.0, 0, torch.float32, "none", [], ""
    )


def multiply_widened(rows: torch.Tensor, matrix: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows (row, input) of any dtype times an int8 matrix (output, input) and its scales (output): float32.

    Inputs and outputs of a few rows are rounded to bfloat16; for more, the matrix is made one of float32 each time.
    """
    if len(rows) <= FEW_ROWS and matrix.shape[1] % VECTOR == 0:
        return torch._weight_int8pack_mm(rows.bfloat16(), matrix, torch.ones_like(scales).bfloat16()) * scales
    return (matrix.float() @ rows.float().t()).t() * scales


class Int8Linear(nn.Module):
    """A linear layer whose weights are rounded to 8 bits once, with a scale for each output.

    Where the processor adds products of whole numbers up in 32 bits, inputs are rounded as they come, with a scale for
    each token, which keeps rows of a batch apart; elsewhere the weights are widened as they are read. Either way the
    output of random weights is off by one percent.

    Args:
        linear (`nn.Linear`): Stays as it is; its bias is kept in full.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scales = quantize_rows(linear.weight.detach())
        self.is_whole = adds_in_32_bits()
        # No buffer: it can neither be moved to another device nor saved.
        self.matrix = pack(weight) if self.is_whole else weight
        self.register_buffer("scales", scales[:, 0], persistent=False)
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.device.type != "cpu":
            raise ValueError(f"a model in int8 runs on a CPU, not on {hidden.device}: load it in bfloat16 for that")
        rows = hidden.flatten(0, -2)
        if self.is_whole:
            whole, scales = quantize_rows(rows)
            product = multiply_whole(whole, self.matrix, self.scales) * scales
        else:
            product = multiply_widened(rows, self.matrix, self.scales)
        product = product.to(hidden.dtype)
        product = product if self.bias is None else product + self.bias
        return product.view(*hidden.shape[:-1], -1)


def quantize_layers(model: nn.Module) -> None:
    """Replaces every `nn.Linear` in the layers of a causal language model by an `Int8Linear`.

    The rest becomes float32 where the processor is too old to compute in bfloat16.
    """
    for module in list(model.model.layers.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
    if not adds_in_32_bits():
        model.float()
