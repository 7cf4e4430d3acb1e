"""When in the denoising a concept is decided, and samplers that spend the training there.

The SPARE paper's own formula is not public; the profile and the ``gap`` sampler are our reconstruction (DESIGN 3).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spare_core.atomic import write_json
from spare_core.denoiser import Denoiser
from spare_core.errors import StageError, TrainingError
from spare_core.examples import Examples
from spare_core.settings import EraseSettings


@dataclass(frozen=True)
class TimestepProfile:
    """``gap[i]``: mean squared difference of the frozen predictions under concept and surrogate, at timesteps
    ``edges[i] <= t < edges[i + 1]``."""

    edges: Tensor
    gap: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"edges": self.edges.tolist(), "gap": self.gap.tolist()}

    def save(self, path: Path) -> None:
        """Write JSON; the gap's float32 values survive it exactly."""
        write_json(path, self.as_dict())

    @classmethod
    def load(cls, path: Path) -> TimestepProfile:
        """What :meth:`save` wrote.

        Raises:
            StageError: if the file is missing or damaged.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            edges, gap = torch.tensor(values["edges"]), torch.tensor(values["gap"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StageError(f"{path} holds no timestep profile: {error!r}; run the timesteps stage again") from None
        if edges.dtype != torch.int64 or gap.ndim != 1 or edges.shape != (len(gap) + 1,):
            raise StageError(f"{path} holds edges and gaps that do not fit; run the timesteps stage again")
        return cls(edges, gap)


def bin_edges(num_timesteps: int, bins: int) -> Tensor:
    """``bins + 1`` integer edges that split ``[0, num_timesteps)`` evenly."""
    return torch.linspace(0, num_timesteps, bins + 1).round().long()


@torch.no_grad()
def profile_timesteps(denoiser: Denoiser, examples: Examples, settings: EraseSettings) -> TimestepProfile:
    """gap(t) = E ||eps(x_t, c) - eps(x_t, s)||^2 per bin, on the frozen model (DESIGN 3, Timesteps)."""
    edges = bin_edges(denoiser.num_timesteps, min(settings.bins, denoiser.num_timesteps))
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + 17)
    gaps = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        index = torch.randint(len(examples.forget.latents), (settings.batch_size,), generator=generator)
        side = examples.forget.take(index)
        timesteps = torch.randint(low, high, (settings.batch_size,), generator=generator)
        noise = torch.randn(side.latents.shape, generator=generator)
        noisy = denoiser.add_noise(side.latents, noise, timesteps).to(denoiser.device)
        both = torch.cat([side.concept, side.surrogate])
        prediction = denoiser.predict(
            torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]).to(denoiser.device), examples.table[both]
        )
        concept, surrogate = prediction.chunk(2)
        gaps.append((concept - surrogate).pow(2).mean().item())
    gap = torch.tensor(gaps)
    if not torch.isfinite(gap).all():
        raise TrainingError(f"the frozen model's predictions are not finite ({denoiser.dtype}); try --dtype float32")
    return TimestepProfile(edges, gap)


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


@dataclass(frozen=True)
class TimestepSampler:
    """Draws timesteps bin by bin with ``probabilities``, stratified within a batch, uniform within a bin."""

    edges: Tensor
    probabilities: Tensor

    @classmethod
    def from_profile(cls, profile: TimestepProfile, settings: EraseSettings) -> TimestepSampler:
        """The sampler that ``settings.timesteps`` names: "uniform", "window" or "gap"."""
        widths = profile.edges.diff().double()
        uniform = widths / widths.sum()
        if settings.timesteps == "gap":
            return cls(profile.edges, gap_probabilities(profile.gap, settings.gamma, settings.floor))
        if settings.timesteps == "window":
            first, last = window(profile.gap, settings.window_mass)
            inside = torch.zeros_like(uniform)
            inside[first:last] = uniform[first:last]
            return cls(profile.edges, inside / inside.sum())
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
