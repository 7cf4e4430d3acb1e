"""Draw a suite's grid and judge it. What the base model draws is kept in a cache: it is the same for every adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.errors import TrainingError
from spare_core.evaluation.damage import Pictures, Texture, measure_texture
from spare_core.evaluation.judgement import Judge, Judgement
from spare_core.evaluation.metrics import Column, Outcomes
from spare_core.evaluation.suite import Cells, Domain, Suite
from spare_core.models.denoiser import Denoiser
from spare_core.runs.base_cache import cache_key, default_folder, keep, read_kept

THUMBNAIL: Final = 128
"""Longest side of a stored picture in pixels."""
_FORMAT: Final = 1
"""Version of the cache; raised whenever what is stored or how it is measured changes."""
_LARGEST_BATCH: Final = 128
_BATCH_PIXELS: Final = 2**21
"""Pixels drawn at once: 128 pictures of 64 x 64, 8 of 512 x 512, 2 of 1024 x 1024."""

OnBatch = Callable[[int, int], None]
"""Called with how many pictures are drawn, and how many there are."""


@dataclass(frozen=True)
class GridResult:
    """What was asked, what was drawn, what the judge saw; N pictures in the order of :meth:`Suite.all_cells`.

    ``object_probability`` and ``style_probability`` are of the prompted concepts; ``features`` ``(N, D)`` float32;
    ``thumbnails`` uint8 ``(N, h, w, 3)``; ``contrast`` and ``high_frequency`` of the whole pictures; all else ``(N,)``.
    """

    objects: Tensor
    styles: Tensor
    seeds: Tensor
    predicted_objects: Tensor
    predicted_styles: Tensor
    object_probability: Tensor
    style_probability: Tensor
    features: Tensor
    thumbnails: Tensor
    contrast: Tensor
    high_frequency: Tensor

    def __len__(self) -> int:
        return len(self.objects)

    def take(self, rows: Tensor) -> GridResult:
        """The pictures that ``rows`` bool ``(N,)`` marks."""
        return GridResult(**{name: values[rows] for name, values in vars(self).items()})

    def joined(self, other: GridResult) -> GridResult:
        """These pictures, then those of another grid."""
        return GridResult(**{name: torch.cat([values, vars(other)[name]]) for name, values in vars(self).items()})

    @property
    def outcomes(self) -> Outcomes:
        """What the metrics need."""
        return Outcomes(
            Column(self.objects, self.predicted_objects, self.object_probability),
            Column(self.styles, self.predicted_styles, self.style_probability),
        )

    @property
    def pictures(self) -> Pictures:
        """What the damage checks need."""
        return Pictures(Texture(self.contrast, self.high_frequency), self.thumbnails, self.seeds)


def batch_size_for(side: int) -> int:
    """Pictures of ``side`` pixels drawn at once."""
    return max(1, min(_LARGEST_BATCH, _BATCH_PIXELS // side**2))


def draw_grid(
    denoiser: Denoiser,
    suite: Suite,
    judge: Judge,
    adapters: Sequence[Adapter] = (),
    batch_size: int | None = None,
    on_batch: OnBatch = lambda done, total: None,
    cells: Cells | None = None,
) -> GridResult:
    """Draw and judge ``cells``, else every picture of ``suite``, with all ``adapters`` on; each starts from its own
    seed alone."""
    cells = suite.cells() if cells is None else cells
    side = suite.resolution or denoiser.resolution
    parts: list[dict[str, Tensor]] = []
    total = len(cells.objects)
    on_batch(0, total)
    with contextlib.ExitStack() as stack:
        for adapter in adapters:
            stack.enter_context(adapter.to(denoiser.device).attached(denoiser))
        for index in torch.arange(total).split(batch_size or batch_size_for(side)):
            rows = Cells(*(part[index] for part in cells))
            pixels = _draw(denoiser, suite, rows, side)
            parts.append(_judged(rows, judge.judge(pixels), pixels))
            on_batch(int(index[-1]) + 1, total)
    return GridResult(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _draw(denoiser: Denoiser, suite: Suite, rows: Cells, side: int) -> Tensor:
    """RGB ``(B, 3, H, W)`` in [0, 1].

    Raises:
        TrainingError: if a value is not finite.
    """
    pairs = zip(rows.objects.tolist(), rows.styles.tolist(), strict=True)
    prompts = [suite.prompt(suite.objects[obj], suite.styles[style]) for obj, style in pairs]
    latents = denoiser.generate(prompts, rows.seeds.tolist(), suite.steps, suite.guidance, side, len(prompts))
    pixels = denoiser.decode_latents(latents)
    if not torch.isfinite(pixels).all():
        raise TrainingError(f"decoding gave pixels that are not finite ({denoiser.dtype}); try --dtype float32")
    return pixels


def _judged(rows: Cells, judged: Judgement, pixels: Tensor) -> dict[str, Tensor]:
    texture = measure_texture(pixels)
    return {
        **rows._asdict(),
        "predicted_objects": judged.objects.predicted,
        "predicted_styles": judged.styles.predicted,
        "object_probability": judged.objects.probabilities.gather(1, rows.objects[:, None])[:, 0],
        "style_probability": judged.styles.probabilities.gather(1, rows.styles[:, None])[:, 0],
        "features": judged.features,
        "thumbnails": _thumbnails(pixels),
        **texture._asdict(),
    }


def _thumbnails(pixels: Tensor) -> Tensor:
    longest = max(pixels.shape[-2:])
    if longest > THUMBNAIL:
        sides = [max(1, side * THUMBNAIL // longest) for side in pixels.shape[-2:]]
        pixels = F.interpolate(pixels, sides, mode="area")
    return (pixels * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def base_grid(
    denoiser: Denoiser,
    base_digest: str,
    suite: Suite,
    judge: Judge,
    batch_size: int | None = None,
    on_batch: OnBatch = lambda done, total: None,
    cache: Path | None = None,
    cells: Cells | None = None,
) -> tuple[GridResult, bool]:
    """:func:`draw_grid` without adapters, and whether it came from a cache: ``cache``, else where all are."""
    folder = cache or default_folder("grids")
    key = _cache_key(denoiser, base_digest, suite, judge, cells)
    known = read_kept(folder, key)
    if known is not None:
        kept = GridResult(**known)
        on_batch(len(kept), len(kept))
        return kept, True
    drawn = draw_grid(denoiser, suite, judge, (), batch_size, on_batch, cells)
    keep(folder, key, vars(drawn))
    return drawn, False


def with_further(
    base: GridResult,
    denoiser: Denoiser,
    base_digest: str,
    suite: Suite,
    judge: Judge,
    erased: Mapping[Domain, Sequence[int]],
    batch_size: int | None = None,
    on_batch: OnBatch = lambda done, total: None,
) -> GridResult:
    """``base``, which is :func:`base_grid`'s, with what is drawn besides of ``erased``: kept apart in the cache, so
    that the rest serves every erasure."""
    further = suite.further_cells(erased)
    if not len(further.objects):
        return base
    return base.joined(base_grid(denoiser, base_digest, suite, judge, batch_size, on_batch, cells=further)[0])


def _cache_key(denoiser: Denoiser, base_digest: str, suite: Suite, judge: Judge, cells: Cells | None) -> str:
    """sha256 of everything that decides the pictures or the verdicts."""
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "base": base_digest,
        "decoder": denoiser.files.decoder_digest,
        "suite": suite.sampling(),
        "cells": None if cells is None else [part.tolist() for part in cells],
        "side": suite.resolution or denoiser.resolution,
        "judge": [judge.name, judge.digest],
        "dtype": str(denoiser.dtype),
    }
    return cache_key(denoiser, facts)
