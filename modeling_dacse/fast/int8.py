"""Matrices of 8 bits for a CPU, where decoding takes as long as the weights take to be read.

A quantizer of the library: `from_pretrained(place, quantization_config=Int8Config())`.
"""

import functools
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "dacse_int8"
FEW_ROWS = 32  # of more, a matrix product in float32 is as fast
VECTOR = 16  # weights that `torch._weight_int8pack_mm` reads at once, also past the end of a row


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
    """An int8 matrix (output, input) as `multiply_whole` reads it: on x86 that is up to three times faster."""
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


class Int8Linear(nn.Linear):
    """A linear layer whose weights are whole numbers of 8 bits, with a scale for each output.

    Where the processor adds products of whole numbers up in 32 bits, inputs are rounded as they come, with a scale for
    each token, which keeps rows of a batch apart; elsewhere the weights are widened as they are read. Either way the
    output of random weights is off by one percent.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is one; it is kept in full.
        device: Of the parameters.
        dtype: Of the bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device=None, dtype=None):
        super().__init__(in_features, out_features, bias, device, dtype)
        weight = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scales", torch.empty(out_features, dtype=torch.float32, device=device))
        self._packed: tuple[int, torch.Tensor] | None = None  # which weights, and they as the processor reads them

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cpu":
            raise ValueError(f"a model in int8 runs on a CPU, not on {input.device}: load it in bfloat16 for that")
        rows, scales = input.flatten(0, -2), self.scales.float()
        if adds_in_32_bits():
            whole, row_scales = quantize_rows(rows)
            product = multiply_whole(whole, self._pack(), scales) * row_scales
        else:
            product = multiply_widened(rows, self.weight, scales)
        product = product.to(input.dtype)
        product = product if self.bias is None else product + self.bias
        return product.view(*input.shape[:-1], -1)

    def _pack(self) -> torch.Tensor:
        if self._packed is None or self._packed[0] != self.weight.data_ptr():
            self._packed = self.weight.data_ptr(), pack(self.weight)
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:  # packed weights can be neither copied nor pickled
        return super().__getstate__() | {"_packed": None}


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """Has the matrices of a model's layers rounded to 8 bits as they are loaded; the rest is in the model's dtype."""

    def __init__(self, **kwargs: Any):
        self.quant_method = METHOD


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """Loads every `nn.Linear` in the layers of a causal language model as an `Int8Linear`, and saves it as one."""

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for module in list(model.model.layers.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    bias = child.bias is not None
                    weight = child.weight
                    new = Int8Linear(child.in_features, child.out_features, bias, weight.device, weight.dtype)
                    setattr(module, name, new)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight" and not self.pre_quantized

    def get_quantize_ops(self) -> ConversionOps:
        return Int8Quantize()

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # adapters are, on whole weights


class Int8Quantize(ConversionOps):
    """What becomes of a stored matrix on its way into an `Int8Linear`."""

    def convert(
        self, input_dict: dict[str, list[torch.Tensor]], full_layer_name: str | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        (value,) = next(iter(input_dict.values()))
        weight, scales = quantize_rows(value)
        return {full_layer_name: weight, full_layer_name.removesuffix("weight") + "scales": scales[:, 0]}
