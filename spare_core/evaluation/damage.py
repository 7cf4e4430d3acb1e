"""Degenerate pictures: some erasures turn pictures to noise, to flat fields, or all to the same one.

A figure of accuracy can hide that, so pictures are measured themselves and compared with what the base model draws.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PERCENTILES: Final = (0.001, 0.999)
"""Share of the base's own pictures below and above which a picture counts as out of range."""
HIGH_FREQUENCY: Final = 0.25
"""Cycles a pixel; half of what the grid can hold."""
NEAR_DUPLICATE: Final = 0.03
"""Root mean square difference, of thumbnails of 16 x 16 in [0, 1], below which two pictures are the same."""
_SMALL: Final = 16
_LUMA: Final = (0.299, 0.587, 0.114)


class Texture(NamedTuple):
    """Texture of each picture ``(N,)``: ``contrast``, the standard deviation of its brightness, and
    ``high_frequency``, the
    share of the brightness's variance that lies above :data:`HIGH_FREQUENCY` (0.8 for white noise)."""

    contrast: Tensor
    high_frequency: Tensor


class Pictures(NamedTuple):
    """What the comparison needs of a grid: textures, thumbnails uint8 ``(N, h, w, 3)``, seeds ``(N,)``."""

    texture: Texture
    thumbnails: Tensor
    seeds: Tensor


def measure_texture(pixels: Tensor) -> Texture:
    """Texture of RGB pictures ``(B, 3, H, W)`` in [0, 1]; a flat picture has no frequencies, so both are 0."""
    brightness = (pixels.float() * pixels.new_tensor(_LUMA)[:, None, None]).sum(dim=1)
    centred = brightness - brightness.mean(dim=(1, 2), keepdim=True)
    power = torch.fft.fft2(centred).abs().pow(2)
    vertical, horizontal = (torch.fft.fftfreq(side, device=pixels.device) for side in power.shape[1:])
    outside = (vertical[:, None].square() + horizontal.square()) > HIGH_FREQUENCY**2
    total = power.sum(dim=(1, 2))
    # Rounding leaves some power in a flat picture; its shares would mean nothing.
    shares = torch.where(total > 1e-6 * power[0].numel(), (power * outside).sum(dim=(1, 2)) / total, 0.0)
    return Texture(centred.square().mean(dim=(1, 2)).sqrt().cpu(), shares.cpu())


def compare(base: Pictures, adapted: Pictures, erased: Tensor) -> dict[str, Any]:
    """Shares of degenerate pictures, base and adapted; ``erased`` ``(N,)`` says which prompts name an erased concept.

    ``outside``: shares whose contrast or high frequencies are outside the base's 0.1 to 99.9 percentiles;
    ``near_duplicates``: shares that look like a picture of another prompt of the same seed; ``damaged``: of either.
    """
    ranges = {name: _range(getattr(base.texture, name)) for name in Texture._fields}
    report: dict[str, Any] = {
        "base_range": {name: list(bounds) for name, bounds in ranges.items()},
        "percentiles": list(PERCENTILES),
        "near_duplicate_below": NEAR_DUPLICATE,
    }
    for group, rows in (("kept", ~erased), ("erased", erased)):
        report[group] = {"pictures": int(rows.sum())}
        for label, pictures in (("base", base), ("adapted", adapted)):
            report[group][label] = _shares(pictures, rows, ranges)
    return report


def _range(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values.double(), torch.tensor(PERCENTILES, dtype=torch.double)).tolist()
    return low, high


def _shares(pictures: Pictures, rows: Tensor, ranges: dict[str, tuple[float, float]]) -> dict[str, float]:
    shares = {}
    any_outside = torch.zeros(int(rows.sum()), dtype=torch.bool)
    for name, (low, high) in ranges.items():
        values = getattr(pictures.texture, name)[rows].double()
        inside = (low <= values) & (values <= high)
        shares[f"{name}_outside"] = _mean(~inside)
        any_outside |= ~inside
    shares["outside"] = _mean(any_outside)
    doubles = near_duplicates(pictures.thumbnails[rows], pictures.seeds[rows])
    shares["near_duplicates"] = _mean(doubles)
    shares["damaged"] = _mean(any_outside | doubles)
    return shares


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 0.0


def near_duplicates(thumbnails: Tensor, seeds: Tensor) -> Tensor:
    """Whether each picture looks like another of its seed, ``(N,)``; every picture of a seed has another prompt."""
    small = F.interpolate(thumbnails.permute(0, 3, 1, 2).float() / 255.0, (_SMALL, _SMALL), mode="area").flatten(1)
    found = torch.zeros(len(seeds), dtype=torch.bool)
    for seed in seeds.unique():
        rows = (seeds == seed).nonzero().flatten()
        distances = torch.cdist(small[rows], small[rows], compute_mode="donot_use_mm_for_euclid_dist")
        distances.fill_diagonal_(torch.inf)
        found[rows] = distances.amin(dim=1) / small.shape[1] ** 0.5 < NEAR_DUPLICATE
    return found
