"""Residual and drift: how much of a concept is left and what happened to the rest, without any judge.

With the adapter on (eps_D), the frozen model eps, an erased concept c, its surrogate s and a kept concept k:

    residual = E ||eps_D(x_t, c) - eps(x_t, s)||^2 / E ||eps(x_t, c) - eps(x_t, s)||^2     1 untouched, 0 overwritten
    drift    = E ||eps_D(y_t, k) - eps(y_t, k)||^2 / E ||eps(y_t, c) - eps(y_t, s)||^2     0 untouched

on the probes of :mod:`spare_core.method.probes`. Drift is measured of what is kept by name, of generic texts, and of
the words that lie nearest to the erased concepts: an erasure that spares only what it was told to must not look good.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import GENERIC, NEAR, NULL
from spare_core.method.probes import HeldOut, Probe, asked_once, draw_again, mean_square
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import predict_rows
from spare_core.models.denoiser import Denoiser

NULL_NAME = "(empty prompt)"
_IN_LISTS: Final = 0.1
"""Of N names drift counts N to the power of minus this. The more names, the more every solution leaves of each, and the
nearer is a residual to what shows in pictures; judged lists of ten and of a hundred are best so (docs/failures.md)."""


@dataclass(frozen=True)
class Measurement:
    """``residuals``: for each erased concept, 1 nothing erased, 0 overwritten; ``drift``: for each kept concept, 0
    untouched; ``unnamed_drift``: the same of texts that name nothing of the request, None where there were none;
    ``near_drift``: the same of the words that lie nearest to the erased concepts and that nobody named."""

    residuals: dict[str, float]
    drift: dict[str, float]
    unnamed_drift: float | None = None
    near_drift: dict[str, float] = field(default_factory=dict)

    @property
    def residual(self) -> float:
        """Mean over the erased concepts."""
        return sum(self.residuals.values()) / len(self.residuals)

    @property
    def worst_residual(self) -> float:
        """The largest residual over the erased concepts."""
        return max(self.residuals.values())

    @property
    def mean_drift(self) -> float:
        """Mean over the kept concepts."""
        return sum(self.drift.values()) / len(self.drift)

    @property
    def deciding_drift(self) -> float:
        """The mean drift of what is named or that of what is not, whichever is more."""
        return max(self.mean_drift, self.unnamed_drift or 0.0)

    def left(self, limit: float) -> dict[str, float]:
        """The names whose residual is above ``limit``, with it, the highest first."""
        above = {name: residual for name, residual in self.residuals.items() if residual > limit}
        return dict(sorted(above.items(), key=lambda one: -one[1]))

    def cost(self, price: float) -> float:
        """One figure to choose by: drift counts ``price`` times, in a list less (:data:`_IN_LISTS`)."""
        return self.residual + price * len(self.residuals) ** -_IN_LISTS * self.deciding_drift

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "residual": self.residual,
            "residuals": self.residuals,
            "drift": self.drift,
            "mean_drift": self.mean_drift,
            "unnamed_drift": self.unnamed_drift,
            "near_drift": self.near_drift,
        }


UNTOUCHED = Measurement({"": 1.0}, {NULL_NAME: 0.0})
"""What an adapter that changes nothing measures, by definition."""


class Meter:
    """Measures adapters of one denoiser on one set of probes."""

    def __init__(self, denoiser: Denoiser, held_out: HeldOut, tf32: bool = False) -> None:
        """``tf32``: fast and precise enough to choose by, not to report."""
        self.denoiser, self.held_out, self.tf32 = denoiser, held_out, tf32

    def _ask(self, *probes: Probe) -> tuple[Tensor, ...]:
        """The predictions that each is about, of all of them at once."""
        noisy, timesteps, prompt, *_ = (torch.cat(parts) for parts in zip(*probes, strict=True))
        found = predict_rows(self.denoiser, self.held_out.table, noisy, timesteps, prompt)
        return found.split([len(probe.prompt) for probe in probes])

    @torch.no_grad()
    def measure(self, *adapters: Adapter) -> Measurement:
        """Residual and drift with ``adapters`` on."""
        with self._with(adapters):
            forget, retain = self._ask(self.held_out.forget, self.held_out.retain)
        drift = self._changes(self.held_out.retain, retain)
        unnamed = drift.pop(GENERIC, None)
        near = {name.removeprefix(NEAR): drift.pop(name) for name in [*drift] if name.startswith(NEAR)}
        named = {name if name != NULL else NULL_NAME: change for name, change in drift.items()}
        return Measurement(self._changes(self.held_out.forget, forget), named, unnamed, near)

    @torch.no_grad()
    def residuals(self, *adapters: Adapter) -> dict[str, float]:
        """What is left of each erased concept, alone."""
        with self._with(adapters):
            return self._changes(self.held_out.forget, *self._ask(self.held_out.forget))

    @torch.no_grad()
    def drift(self, *adapters: Adapter) -> dict[str, float]:
        """How far each kept concept has moved, alone."""
        with self._with(adapters):
            return self._changes(self.held_out.retain, *self._ask(self.held_out.retain))

    @torch.no_grad()
    def moved(self, *adapters: Adapter) -> dict[str, float]:
        """How far each concept that is asked about as erased is from what the base model draws for it: 0 as if it had
        never been erased, about 1 where it has become its surrogate."""
        probe = self.held_out.forget
        with self._with(()):
            (own,) = self._ask(probe)
        with self._with(adapters):
            return self._changes(probe._replace(teacher=own), *self._ask(probe))

    @contextlib.contextmanager
    def _with(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.denoiser.precise(self.tf32))
            for adapter in adapters:
                stack.enter_context(adapter.attached(self.denoiser))
            yield

    def _changes(self, probe: Probe, predictions: Tensor) -> dict[str, float]:
        """Squared distance to the teacher in units of the gap, by the concept that the prompts name."""
        moved = mean_square(predictions - probe.teacher)
        names = [self.held_out.names[row] for row in probe.prompt.tolist()]
        changes = {}
        for name in dict.fromkeys(names):
            rows = torch.tensor([other == name for other in names])
            changes[name] = float(moved[rows].sum() / probe.unit[rows].sum())
        return changes


def look_again(
    denoiser: Denoiser, erasures: Erasures, settings: EraseSettings, adapter: Adapter, measured: Measurement
) -> Measurement:
    """``measured`` with a second figure for each name of a long list that seems to be left, from four trajectories of
    its own in place of the first one's single one: of a hundred names that are gone from pictures, five measure more
    than a half on one trajectory. Where a quarter seems to be left, the list is what is wrong."""
    left = measured.left(settings.failed_above)
    if not left or not asked_once(len(erasures.names), settings) or 4 * len(left) > len(measured.residuals):
        return measured
    again = Meter(denoiser, draw_again(denoiser, erasures, settings, left)).residuals(adapter)
    return dataclasses.replace(measured, residuals=measured.residuals | again)
