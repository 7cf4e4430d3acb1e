"""Where a model computes and in which precision. Importing this is light: the command line reads the choices."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Literal

from spare_core.errors import ModelError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(device: Device) -> torch.device:
    """The device asked for, or the best one that is here.

    Raises:
        ModelError: if the device asked for is not available, or none.
    """
    if device not in typing.get_args(Device):
        raise ModelError(f"device is {device!r}; allowed: {', '.join(typing.get_args(Device))}")
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in available.items() if here))
    if not available[device]:
        here = ", ".join(name for name, there in available.items() if there)
        raise ModelError(f"device {device!r} is not available on this machine; available: {here}")
    return torch.device(device)


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The precision asked for; "auto" is bfloat16 where the device computes in it, else float32.

    Raises:
        ModelError: if it is none.
    """
    if precision not in typing.get_args(Precision):
        raise ModelError(f"dtype is {precision!r}; allowed: {', '.join(typing.get_args(Precision))}")
    import torch

    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32
