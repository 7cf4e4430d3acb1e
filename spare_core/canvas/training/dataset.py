"""The pictures: rendered once, kept as one array on disk, read by every training stage."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spare_core.canvas.grid import RESOLUTION, Grid
from spare_core.canvas.renderer import render
from spare_core.canvas.training.artwork import load_artwork
from spare_core.canvas.training.recipe import Recipe

_STREAM: Final = {"train": 0, "heldout": 1}


class Renderings(NamedTuple):
    """``pixels`` uint8 ``(N, 64, 64, 3)``; ``objects`` and ``styles`` are indices ``(N,)`` into the grid's names."""

    pixels: Tensor
    objects: Tensor
    styles: Tensor

    def floats(self, index: Tensor) -> Tensor:
        """The chosen pictures as float32 ``(B, 3, 64, 64)`` in [-1, 1]."""
        return self.pixels[index].permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def to(self, device: torch.device) -> Renderings:
        """The same on ``device``."""
        return Renderings(*(part.to(device) for part in self))


def load_pictures(work: Path, recipe: Recipe, split: str, seed: int) -> Renderings:
    """The pictures of ``split`` ("train" or "heldout"), rendered into ``work`` on first use."""
    grid, count = recipe.grid, recipe.per_cell[split]
    path = work / f"{split}-{seed}.npy"
    if not path.exists():
        drawings = load_artwork(work / "artwork", grid)
        job = partial(_render_object, grid=grid, drawings=drawings, count=count, seed=(seed, _STREAM[split]))
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            pixels = np.concatenate(list(pool.map(job, range(len(grid.objects)))))
        temporary = path.with_suffix(".partial.npy")
        np.save(temporary, pixels)
        temporary.rename(path)
    return Renderings(
        torch.from_numpy(np.load(path)),
        torch.arange(len(grid.objects)).repeat_interleave(len(grid.styles) * count),
        torch.arange(len(grid.styles)).repeat_interleave(count).repeat(len(grid.objects)),
    )


def _render_object(
    index: int, grid: Grid, drawings: dict[str, list[Image.Image]], count: int, seed: tuple[int, int]
) -> np.ndarray:
    """Every style of one object, ``count`` pictures each, style by style."""
    choices = drawings[grid.objects[index]]
    pixels = np.empty((len(grid.styles) * count, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    for row in range(len(pixels)):
        rng = np.random.default_rng((*seed, index, row))
        picture = render(choices[row % len(choices)], grid.styles[row // count], rng)
        pixels[row] = np.round(picture * 255.0)
    return pixels
