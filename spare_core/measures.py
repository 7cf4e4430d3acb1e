"""Residual and drift: how much of a concept is left and what happened to the rest, without any judge.

Both are ratios of mean squared differences of predictions, on held-out latents, contexts and noise, at timesteps spread
evenly (DESIGN 3, Measures)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spare_core.adapter import Adapter
from spare_core.denoiser import Denoiser
from spare_core.errors import InputError, TrainingError
from spare_core.examples import NULL, Examples, Side

NULL_NAME = "(empty prompt)"
NO_DIFFERENCE = (
    "the model predicts the same noise for the concept and its surrogate: it does not know one of them, so there is "
    "nothing to erase; check the spelling or choose another surrogate"
)
_REPEATS = 2
"""Noise draws for each held-out latent."""


@dataclass(frozen=True)
class Measurement:
    """``residual``: 1 nothing erased, 0 overwritten; ``drift``: for each kept concept, 0 untouched."""

    residual: float
    drift: dict[str, float]

    @property
    def mean_drift(self) -> float:
        """Mean over the kept concepts."""
        return sum(self.drift.values()) / len(self.drift)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"residual": self.residual, "drift": self.drift, "mean_drift": self.mean_drift}


@dataclass(frozen=True)
class _Probe:
    """Noisy inputs with what the frozen model predicts for them; ``unit`` is ||eps(c) - eps(s)||^2 of each row."""

    side: Side
    noisy: Tensor
    timesteps: Tensor
    teacher: Tensor
    unit: Tensor


class Meter:
    """Measures adapters of one denoiser on one set of held-out examples; the frozen predictions are made once."""

    def __init__(self, denoiser: Denoiser, examples: Examples, seed: int, batch_size: int = 32) -> None:
        self.denoiser, self.examples, self.batch_size = denoiser, examples, batch_size
        self._forget = self._probe(examples.forget_heldout, seed * 1_000_003 + 31)
        self._retain = self._probe(examples.retain_heldout, seed * 1_000_003 + 37)
        if not float(self._forget.unit.mean()) > 0:
            raise InputError(NO_DIFFERENCE)

    @torch.no_grad()
    def _probe(self, side: Side, seed: int) -> _Probe:
        generator = torch.Generator().manual_seed(seed)
        side = side.take(torch.arange(len(side.latents)).repeat(_REPEATS))
        count = len(side.latents)
        order = torch.randperm(count, generator=generator)
        timesteps = ((order + 0.5) / count * self.denoiser.num_timesteps).long()
        noise = torch.randn(side.latents.shape, generator=generator)
        noisy = self.denoiser.add_noise(side.latents, noise, timesteps)
        teacher = self._predict(noisy, timesteps, side.teacher)
        gap = self._predict(noisy, timesteps, side.concept) - self._predict(noisy, timesteps, side.surrogate)
        return _Probe(side, noisy, timesteps, teacher, _square(gap))

    def _predict(self, noisy: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        device = self.denoiser.device
        parts = []
        for index in torch.arange(len(noisy)).split(self.batch_size):
            conditioning = self.examples.table[rows[index]]
            prediction = self.denoiser.predict(noisy[index].to(device), timesteps[index].to(device), conditioning)
            parts.append(prediction.cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def measure(self, *adapters: Adapter) -> Measurement:
        """Residual and drift with ``adapters`` on."""
        with contextlib.ExitStack() as stack:
            for adapter in adapters:
                stack.enter_context(adapter.attached(self.denoiser))
            forget = self._predict(self._forget.noisy, self._forget.timesteps, self._forget.side.student)
            retain = self._predict(self._retain.noisy, self._retain.timesteps, self._retain.side.student)
        if not (torch.isfinite(forget).all() and torch.isfinite(retain).all()):
            raise TrainingError(
                f"the adapter's predictions are not finite ({self.denoiser.dtype}); lower --lr or use --dtype float32"
            )
        residual = _square(forget - self._forget.teacher).mean() / self._forget.unit.mean()
        moved, drift = _square(retain - self._retain.teacher), {}
        names = [self.examples.names[row] for row in self._retain.side.student.tolist()]
        for name in dict.fromkeys(names):
            rows = torch.tensor([i for i, other in enumerate(names) if other == name])
            # One unit for all concepts: the mean gap on the retain side's latents. That of a few rows is too noisy.
            drift[name if name != NULL else NULL_NAME] = float(moved[rows].mean() / self._retain.unit.mean())
        return Measurement(float(residual), drift)


def _square(difference: Tensor) -> Tensor:
    """Mean square of each row."""
    return difference.double().pow(2).flatten(1).mean(dim=1)
