"""Concept inversion: vectors that bring a concept back without its name.

    min over v   E || eps_adapted(x_t, c(v)) - eps_base(x_t, c) ||^2

What ``v`` is and how it makes the conditioning c(v) is a carrier's matter: :mod:`spare_core.attacks.conditioning`,
:mod:`spare_core.attacks.tokens`. The attacker knows the base model's own predictions, which is more than pictures say.
Textual inversion (arXiv 2208.01618) is the idea; against erased models it is concept inversion (arXiv 2308.01508),
whose own protocol learns from pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.errors import TrainingError
from spare_core.method.bank import Side
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream

_WIDE: Final = 0.3
"""Deviation of where restarts begin, in units of the carrier; the first try begins at its origin."""
_HELD_OUT: Final = 4
"""One in so many states is measured on, not learned from."""


class Try(NamedTuple):
    """One try of an inversion."""

    vectors: int
    rate: float
    restart: int

    @property
    def title(self) -> str:
        """For file names and for people."""
        return f"{self.vectors}v-lr{self.rate:g}-{self.restart}"


class Inverted(NamedTuple):
    """Learned ``vectors`` ``(V, D)``; what was ``left`` of the way to the base's prediction before and after, on states
    that were not learned from (1: as far as the erased prediction, 0: there); how far they are from where they began,
    in lengths of what stands for the concept."""

    vectors: Tensor
    left_before: float
    left: float
    length: float


class Carrier(Protocol):
    """How vectors reach the model."""

    unit: float
    """Root mean square of what stands for the concept where the vectors go."""

    def origin(self, count: int) -> Tensor:
        """``count`` vectors ``(V, D)`` that the first try begins with."""

    def of_rows(self, rows: Tensor, vectors: Tensor) -> Conditioning:
        """The prompts of the bank's ``rows`` with ``vectors``, with their gradient."""

    def of_prompts(self, prompts: Sequence[str], vectors: Tensor, resolution: int = 0) -> Conditioning:
        """Any prompts that name the concept, with ``vectors``, for pictures of a resolution."""


def invert(
    denoiser: Denoiser, states: Side, carrier: Carrier, one: Try, steps: int, batch_size: int, seed: int
) -> Inverted:
    """Learn vectors against ``denoiser`` as it is, adapters on. ``states`` are of prompts that name the concept.

    Raises:
        TrainingError: if a loss is not finite.
    """
    generator = stream(seed, "inversion", one.title)
    origin = carrier.origin(one.vectors)
    away = torch.randn(origin.shape, generator=generator) * carrier.unit * _WIDE * min(1, one.restart)
    vectors = torch.nn.Parameter((origin + away).to(denoiser.device))
    optimizer = torch.optim.Adam([vectors], lr=one.rate * carrier.unit)
    order = torch.randperm(len(states.timesteps), generator=generator)
    held_out, learned = order[: len(order) // _HELD_OUT], order[len(order) // _HELD_OUT :]

    def predict(index: Tensor) -> Tensor:
        noisy, timesteps = states.noisy[index].to(denoiser.device), states.timesteps[index].to(denoiser.device)
        return denoiser.predict(noisy, timesteps, carrier.of_rows(states.student[index], vectors))

    @torch.no_grad()
    def left() -> float:
        found = torch.cat([predict(part).cpu() for part in held_out.split(batch_size)])
        wanted, erased = states.under_student[held_out], states.under_teacher[held_out]
        return float((found - wanted).square().sum() / (erased - wanted).square().sum())

    before = left()
    for step in range(steps):
        index = learned[torch.randint(len(learned), (batch_size,), generator=generator)]
        loss = F.mse_loss(predict(index), states.under_student[index].to(denoiser.device))
        if not torch.isfinite(loss):
            raise TrainingError(f"inversion {one.title}: the loss is not finite at step {step}; try --dtype float32")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = vectors.detach().cpu()
    return Inverted(found, before, left(), float((found - origin).square().mean().sqrt()) / carrier.unit)
