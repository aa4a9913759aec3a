"""Devices of this machine and the arithmetic they have. Knows torch alone."""

import torch


def check_device(device: int | str | torch.device | None) -> None:
    """Raises ValueError unless the device is one of this machine's; `None` leaves the choice to transformers."""
    if device is None or device == -1:
        return
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown: {str(error).splitlines()[0]}") from error
    if device.type == "cpu":
        return
    backend = getattr(torch, device.type, None)  # torch.cuda, torch.mps, torch.xpu, ...
    if backend is None or not backend.is_available():
        raise ValueError(f"device {str(device)!r} is not available with torch {torch.__version__} here; use 'cpu'")
    if (device.index or 0) >= backend.device_count():
        raise ValueError(f"device {str(device)!r} is not here; {device.type} has {backend.device_count()}")


def check_dtype(dtype: str | torch.dtype | None) -> None:
    """Raises ValueError if `transformers.pipeline`, which turns names into dtypes, left this one as it was."""
    if isinstance(dtype, str) and dtype != "auto":
        raise ValueError(f"dtype {dtype!r} is unknown; give 'auto', 'float32', 'bfloat16' or 'float16'")


def is_imitated(dtype: torch.dtype) -> bool:
    """Whether this CPU has no arithmetic in a dtype, so that torch imitates it, many times slower than float32."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    can_tell = dtype in supported and torch.backends.mkldnn.is_available()
    return can_tell and not getattr(torch.ops.mkldnn, supported[dtype])()
