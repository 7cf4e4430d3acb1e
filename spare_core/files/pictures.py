"""Pictures that a user gives: read, checked, and brought to the shape that a model encodes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from spare_core.errors import ImagesError

_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_images(folder: Path, side: int) -> Tensor:
    """Every image of a folder, centre-cropped to a square: RGB ``(N, 3, side, side)`` in [-1, 1], by file name.

    Raises:
        ImagesError: if the folder is missing or empty, or lists every file that cannot be decoded.
    """
    if not folder.is_dir():
        raise ImagesError(f"{folder} is not a folder; give a folder of {', '.join(_SUFFIXES)} files")
    # "._a.jpg" is what macOS writes beside a.jpg.
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES and not f.name.startswith("."))
    if not files:
        inside = sorted(one.name for one in folder.iterdir() if one.is_dir())
        hint = f"; it holds the folder {inside[0]!r}: give that one" if inside else ""
        raise ImagesError(f"{folder} holds no images; looked for {', '.join(_SUFFIXES)}{hint}")
    pixels, bad = [], []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels.append(_square(_upright(image), side))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            bad.append(f"{file.name}: {error}")
    if bad:
        raise ImagesError(f"{len(bad)} of {len(files)} images in {folder} cannot be read: {'; '.join(bad[:10])}")
    return torch.stack(pixels)


def _upright(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: turned as its EXIF says, transparency on white."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _square(image: Image.Image, side: int) -> Tensor:
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    cropped = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(cropped, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)
