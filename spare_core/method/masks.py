"""From scores to masks: which rows, columns, layers or single weights of the target layers may move.

Contract: a mask for a layer of weight ``(out, in)`` is a :class:`LayerMask` whose boolean tensors broadcast against
``(out, in)``. The update is ``(alpha / r) * M * (B A)``; with M = rows x columns, it is exactly a plain LoRA whose
masked rows of B and columns of A are zero.

Every threshold is global over the target layers. That of single weights is found by a radix search over the scores' bit
patterns: two histograms of 65,536 counts give the exact k-th largest float32 without sorting or joining the layers'
scores.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spare_core.adapters.layer_mask import LayerMask, Masks
from spare_core.errors import SettingsError
from spare_core.method.settings import MaskKind


@dataclass
class Score:
    """A layer's score, reduced. ``weight``: one tensor ``(out, in)``; ``channel``: means of the rows ``(out,)`` and of
    the columns ``(in,)``; ``module``: the mean, ``(1,)``. float32."""

    parts: tuple[Tensor, ...]
    shape: tuple[int, int]
    kind: MaskKind

    @classmethod
    def zeros(cls, kind: MaskKind, weight: Tensor) -> Score:
        """Nothing counted yet of ``weight`` ``(out, in)``; where it lies, so that counting waits for nothing."""
        rows, columns = weight.shape
        sizes: dict[MaskKind, list[tuple[int, ...]]] = {
            "weight": [(rows, columns)],
            "channel": [(rows,), (columns,)],
            "module": [(1,)],
        }
        return cls(tuple(torch.zeros(size, device=weight.device) for size in sizes[kind]), (rows, columns), kind)

    def cpu(self) -> Score:
        """The same on the CPU."""
        return Score(tuple(part.cpu() for part in self.parts), self.shape, self.kind)

    def add(self, magnitude: Tensor) -> None:
        """Count one batch's |gradient|, ``(out, in)``."""
        magnitude = magnitude.float()
        if self.kind == "weight":
            reduced: tuple[Tensor, ...] = (magnitude,)
        elif self.kind == "channel":
            reduced = (magnitude.mean(dim=1), magnitude.mean(dim=0))
        else:
            reduced = (magnitude.mean().reshape(1),)
        for part, addition in zip(self.parts, reduced, strict=True):
            part.add_(addition)

    def divided_by(self, other: Score, floor: float) -> Score:
        """Part by part ``self / (other + floor)``."""
        quotients = (mine / (theirs + floor) for mine, theirs in zip(self.parts, other.parts, strict=True))
        return Score(tuple(quotients), self.shape, self.kind)

    def total(self) -> Tensor:
        """Sum of the first part."""
        return self.parts[0].double().sum()

    def count(self) -> int:
        """Number of entries in the first part."""
        return self.parts[0].numel()


def kth_largest(scores: Iterable[Tensor], k: int) -> float:
    """The exact ``k``-th largest value over all ``scores`` (float32, non-negative, finite), 1 <= k <= their number.

    Non-negative floats order as their bit patterns do: a histogram of the upper 16 bits finds the bucket, one of the
    lower 16 bits within that bucket finds the value.
    """
    patterns = [score.contiguous().view(torch.int32).reshape(-1) for score in scores]
    high, above = _bucket((pattern >> 16 for pattern in patterns), k)
    inside = (pattern[(pattern >> 16) == high] & 0xFFFF for pattern in patterns)
    low, _ = _bucket(inside, k - above)
    return torch.tensor((high << 16) | low, dtype=torch.int32).view(torch.float32).item()


def _bucket(codes: Iterable[Tensor], k: int) -> tuple[int, int]:
    """The 16-bit code that holds the ``k``-th largest, and how many codes lie above it."""
    counts = torch.zeros(65536, dtype=torch.long)
    for code in codes:
        counts += torch.bincount(code, minlength=65536)
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    return 65535 - place, int(from_top[place - 1]) if place else 0


def whole_layers(layers: Mapping[str, nn.Linear], moving: Container[str]) -> Masks:
    """Masks that let all of the layers named in ``moving`` move, and nothing of the others."""
    return {name: _full(layer.weight.shape, name in moving) for name, layer in layers.items()}


def build_masks(scores: Mapping[str, Score], kind: MaskKind, density: float) -> Masks:
    """Masks that let at most about ``density`` of all target weights move, the best-scored ones.

    ``weight``: exactly that share, but for equal scores at the threshold. ``channel``: the largest common share of rows
    and of columns whose crossings do not exceed it. ``module``: whole layers, best first, while they fit; at least one.

    Raises:
        SettingsError: if no score is positive, so that there is nothing to choose by.
    """
    if not any(bool((part > 0).any()) for score in scores.values() for part in score.parts):
        raise SettingsError(["every saliency score is zero: the model does not react to the concept or its surrogate"])
    builders: dict[str, Callable[[Mapping[str, Score], float], Masks]] = {
        "weight": _weight_masks,
        "channel": _channel_masks,
        "module": _module_masks,
    }
    return builders[kind](scores, density)


def _weight_masks(scores: Mapping[str, Score], density: float) -> Masks:
    keep = max(1, round(density * _size(scores)))
    threshold = kth_largest((score.parts[0] for score in scores.values()), keep)
    masks = {}
    for name, score in scores.items():
        entries = (score.parts[0] >= threshold) & (score.parts[0] > 0)
        masks[name] = LayerMask(entries.any(dim=1), entries.any(dim=0), entries)
    return masks


def _channel_masks(scores: Mapping[str, Score], density: float) -> Masks:
    # Channels are few, and the search below asks for many thresholds: sorted once, each is a look-up.
    rows, columns = (
        torch.cat([score.parts[side] for score in scores.values()]).sort(descending=True).values for side in (0, 1)
    )

    def masks_at(share: float) -> Masks:
        row_limit, column_limit = (float(part[max(1, round(share * len(part))) - 1]) for part in (rows, columns))
        return {
            name: LayerMask(
                (s.parts[0] >= row_limit) & (s.parts[0] > 0), (s.parts[1] >= column_limit) & (s.parts[1] > 0)
            )
            for name, s in scores.items()
        }

    allowed = density * _size(scores)
    low, high = 0.0, 1.0
    if _moving(masks_at(high)) <= allowed:
        return masks_at(high)
    for _ in range(20):  # bisection: the share of crossings grows with the share of channels
        middle = (low + high) / 2
        low, high = (middle, high) if _moving(masks_at(middle)) <= allowed else (low, middle)
    masks = masks_at(low)
    return masks if 0 < _moving(masks) <= allowed else _best_crossing(scores)


def _best_crossing(scores: Mapping[str, Score]) -> Masks:
    """The best row and the best column of the one layer where their product is largest: where ties, or best rows and
    best columns in different layers, let no common share of channels stay within a density."""
    best = max(scores, key=lambda name: float(scores[name].parts[0].max() * scores[name].parts[1].max()))
    masks = {name: _full(score.shape, False) for name, score in scores.items()}
    masks[best].rows[scores[best].parts[0].argmax()] = True
    masks[best].columns[scores[best].parts[1].argmax()] = True
    return masks


def _module_masks(scores: Mapping[str, Score], density: float) -> Masks:
    allowed = density * _size(scores)
    masks = {name: _full(score.shape, False) for name, score in scores.items()}
    used = 0
    for name in sorted(scores, key=lambda name: (-float(scores[name].parts[0]), name)):
        rows, columns = scores[name].shape
        if used and used + rows * columns > allowed:
            break
        masks[name] = _full(scores[name].shape)
        used += rows * columns
    return masks


def _full(shape: Sequence[int], value: bool = True) -> LayerMask:
    return LayerMask(torch.full((shape[0],), value), torch.full((shape[1],), value))


def _size(scores: Mapping[str, Score]) -> int:
    return sum(score.shape[0] * score.shape[1] for score in scores.values())


def _moving(masks: Masks) -> int:
    return sum(mask.count() for mask in masks.values())


def describe_masks(masks: Masks) -> dict[str, int | float]:
    """Counts for ``spare.json``: layers touched, weights that may move, and their share of the target layers."""
    size = sum(len(mask.rows) * len(mask.columns) for mask in masks.values())
    moving = _moving(masks)
    touched = sum(mask.count() > 0 for mask in masks.values())
    return {
        "layers": len(masks),
        "layers_touched": touched,
        "weights": size,
        "moving": moving,
        "density": moving / size,
    }
