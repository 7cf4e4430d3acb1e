"""When in the denoising a concept is decided, and samplers that spend the training there.

The SPARE paper's own formula is not public; the profile and the ``gap`` sampler are our reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spare_core.method.bank import Bank
from spare_core.method.settings import EraseSettings


@dataclass(frozen=True)
class TimestepProfile:
    """``gap[i]``: mean squared difference of the frozen predictions under concept and surrogate, at timesteps
    ``edges[i] <= t < edges[i + 1]``."""

    edges: Tensor
    gap: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"edges": self.edges.tolist(), "gap": self.gap.tolist()}


def bin_edges(num_timesteps: int, bins: int) -> Tensor:
    """``bins + 1`` integer edges that split ``[0, num_timesteps)`` evenly."""
    return torch.linspace(0, num_timesteps, bins + 1).round().long()


def profile_timesteps(bank: Bank, num_timesteps: int, bins: int) -> TimestepProfile:
    """gap(t) = E ||eps(x_t, c) - eps(x_t, s)||^2 per bin, of the frozen model, as the bank holds it. A bin without a
    state of the forget side gets the value between its neighbours'."""
    edges = bin_edges(num_timesteps, min(bins, num_timesteps))
    side = bank.forget
    gaps = (side.under_student - side.under_teacher).pow(2).flatten(1).mean(dim=1).double()
    place = _bins(edges, side.timesteps)
    counts = torch.bincount(place, minlength=len(edges) - 1)
    sums = torch.zeros(len(counts), dtype=torch.double).index_add_(0, place, gaps)
    known = counts.nonzero().flatten()
    between = np.interp(np.arange(len(counts)), known.numpy(), (sums[known] / counts[known]).numpy())
    return TimestepProfile(edges, torch.from_numpy(between).float())


def _bins(edges: Tensor, timesteps: Tensor) -> Tensor:
    """The bin of each timestep."""
    return torch.bucketize(timesteps, edges[1:-1], right=True)


def gap_probabilities(gap: Tensor, gamma: float, floor: float) -> Tensor:
    """p = (1 - floor) * gap^gamma / sum(gap^gamma) + floor / bins. A gap of zero everywhere gives uniform."""
    power = gap.double().clamp(min=0).pow(gamma)
    total = power.sum()
    shape = power / total if total > 0 else torch.full_like(power, 1 / len(power))
    return (1 - floor) * shape + floor / len(power)


def window(gap: Tensor, mass: float) -> tuple[int, int]:
    """First and one-past-last bin of the shortest run of bins that holds ``mass`` of the gap (earliest if several)."""
    total = torch.cat([torch.zeros(1, dtype=torch.double), gap.double().cumsum(0)])
    if not total[-1] > 0:
        return 0, len(gap)
    needed = mass * total[-1] * (1 - 1e-12)
    for width in range(1, len(gap) + 1):
        for first in range(len(gap) - width + 1):
            if total[first + width] - total[first] >= needed:
                return first, first + width
    return 0, len(gap)


def uniform_above(widths: Tensor, gap: Tensor, share: float) -> Tensor:
    """Uniform over the bins whose gap is at least ``share`` of the largest, and none of the others: training only where
    a score passes a bound is SDErasure's idea. A gap of zero everywhere gives all bins."""
    inside = widths * (gap >= share * gap.max())
    return inside / inside.sum()


@dataclass(frozen=True)
class TimestepSampler:
    """Draws timesteps bin by bin with ``probabilities``, stratified within a batch, uniform within a bin."""

    edges: Tensor
    probabilities: Tensor

    @classmethod
    def from_profile(cls, profile: TimestepProfile, settings: EraseSettings) -> TimestepSampler:
        """The sampler that ``settings.timesteps`` names: "uniform", "window", "threshold" or "gap"."""
        widths = profile.edges.diff().double()
        uniform = widths / widths.sum()
        if settings.timesteps == "gap":
            return cls(profile.edges, gap_probabilities(profile.gap, settings.gamma, settings.floor))
        if settings.timesteps == "window":
            first, last = window(profile.gap, settings.window_mass)
            inside = torch.zeros_like(uniform)
            inside[first:last] = uniform[first:last]
            return cls(profile.edges, inside / inside.sum())
        if settings.timesteps == "threshold":
            return cls(profile.edges, uniform_above(uniform, profile.gap, settings.threshold))
        return cls(profile.edges, uniform)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` timesteps ``(count,)``: one from each of ``count`` equal slices of the distribution, shuffled."""
        strata = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.double)) / count
        cumulative = self.probabilities.cumsum(0)
        cumulative = cumulative / cumulative[-1]
        chosen = torch.searchsorted(cumulative, strata, right=True).clamp(max=len(self.probabilities) - 1)
        low, high = self.edges[chosen], self.edges[chosen + 1]
        within = torch.rand(count, generator=generator, dtype=torch.double)
        timesteps = low + (within * (high - low)).long()
        return timesteps.minimum(high - 1)[torch.randperm(count, generator=generator)]


class StateSampler:
    """Draws states of a bank so that their timesteps follow a :class:`TimestepSampler`.

    A timestep is drawn, then one of the states in its bin; where the bin has none, in the nearest bin that has.
    """

    def __init__(self, sampler: TimestepSampler, timesteps: Tensor) -> None:
        self._sampler = sampler
        place = _bins(sampler.edges, timesteps)
        self._order = place.argsort(stable=True)
        self._counts = torch.bincount(place, minlength=len(sampler.probabilities))
        self._first = self._counts.cumsum(0) - self._counts
        known = self._counts.nonzero().flatten()
        distance = (torch.arange(len(self._counts))[:, None] - known).abs()
        self._nearest = known[distance.argmin(dim=1)]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of ``count`` states, ``(count,)``."""
        timesteps = self._sampler.sample(count, generator)
        place = self._nearest[_bins(self._sampler.edges, timesteps)]
        within = (torch.rand(count, generator=generator, dtype=torch.double) * self._counts[place]).long()
        return self._order[self._first[place] + within.minimum(self._counts[place] - 1)]
