"""From what a user names to a model in memory."""

from __future__ import annotations

from spare_core.models.device import Device, Precision, choose_device, choose_dtype
from spare_core.models.files import find_model
from spare_core.models.unet import UNetDenoiser


def load_denoiser(
    source: str, device: Device = "auto", precision: Precision = "auto", low_memory: bool = False
) -> UNetDenoiser:
    """Load a model for erasing, frozen.

    Raises:
        ModelError: see :func:`spare_core.models.files.find_model`; also if a text encoder's weights did not load.
    """
    files = find_model(source)
    chosen = choose_device(device)
    return UNetDenoiser(files, chosen, choose_dtype(precision, chosen), low_memory)
