"""Draw pictures from prompts, with any number of adapters on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from spare_core.adapters.directory import StoredAdapter, load_adapters
from spare_core.files.atomic import write_bytes, write_json
from spare_core.files.output import check_output
from spare_core.models.device import Device, Precision
from spare_core.models.files import find_model
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from spare_core.models.windows import encode_windows, split_into_windows

REPORT = "generate.json"


def generate_pictures(
    model: str,
    prompts: Sequence[str],
    output: Path,
    adapters: Sequence[Path],
    seed: int,
    steps: int,
    guidance: float,
    any_base: bool = False,
    device: Device = "auto",
    dtype: Precision = "auto",
) -> dict[str, Any]:
    """Write one PNG a prompt and ``generate.json``; returns the latter.

    Raises:
        OutputError: if ``output`` holds anything but an earlier call's pictures.
        InputError: for a bad model, adapter or prompt.
    """
    earlier = (output / REPORT).is_file()
    check_output(output, "pictures", lambda _: earlier)
    digest = find_model(model).digest() if adapters and not any_base else None
    stored = load_adapters(adapters, digest, model)
    denoiser = load_denoiser(model, device, dtype)
    windows = [split_into_windows(denoiser, prompt) for prompt in prompts]
    pixels = draw(denoiser, stored, windows, [seed] * len(prompts), steps, guidance)
    _clear(output)
    report = {"model": model, "adapters": [one.sha256 for one in stored], "steps": steps, "guidance": guidance}
    pictures = []
    for i, (prompt, picture) in enumerate(zip(prompts, pixels, strict=True)):
        name = f"{i:04d}-seed{seed}.png"
        write_bytes(output / name, png(picture))
        pictures.append({"file": str(output / name), "prompt": prompt, "seed": seed, "windows": len(windows[i])})
    write_json(output / REPORT, {**report, "pictures": pictures})
    return {**report, "pictures": pictures}


def _clear(output: Path) -> None:
    """Remove an earlier call's pictures, and mark the folder as ours before the first new one is there."""
    for file in output.glob("[0-9][0-9][0-9][0-9]-seed*.png"):
        file.unlink()
    write_json(output / REPORT, {"pictures": []})


def draw(
    denoiser: UNetDenoiser,
    adapters: Sequence[StoredAdapter],
    prompts: Sequence[Sequence[str]],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """RGB ``(B, 3, H, W)`` in [0, 1] on the CPU, of prompts in windows."""
    with contextlib.ExitStack() as stack:
        for one in adapters:
            stack.enter_context(one.adapter.to(denoiser.device).attached(denoiser))
        latents = denoiser.sample(encode_windows(denoiser, prompts), seeds, steps, guidance)
    return denoiser.decode_latents(latents).cpu()


def png(picture: Tensor) -> bytes:
    """One picture ``(3, H, W)`` in [0, 1] as PNG."""
    pixels = (picture.permute(1, 2, 0).numpy() * 255.0).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
