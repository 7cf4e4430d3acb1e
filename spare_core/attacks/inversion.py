"""Concept inversion: vectors that bring a concept back without its name.

    min over v   E || eps_adapted(x_t, c(v)) - eps_base(x_t, c) ||^2

What ``v`` is and how it makes the conditioning c(v) is a carrier's matter: :mod:`spare_core.attacks.conditioning`,
:mod:`spare_core.attacks.tokens`. The attacker knows the base model's own predictions, which is more than pictures say.
Textual inversion (arXiv 2208.01618) is the idea; against erased models it is concept inversion (CCE, arXiv 2308.01508),
whose own protocol learns from :func:`pictures` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Lesson(NamedTuple):
    """B noisy latents ``(B, C, H, W)`` at ``timesteps`` ``(B,)`` under ``rows`` of a table of prompts, and the
    ``wanted`` prediction."""

    noisy: Tensor
    timesteps: Tensor
    rows: Tensor
    wanted: Tensor


Lessons = Callable[[int, torch.Generator], Lesson]
"""What an attacker learns from: so many rows of it, by chance."""


def predictions(states: Side) -> Lessons:
    """What the base model predicts under the concept's name: who has its weights can ask it."""

    def draw(count: int, generator: torch.Generator) -> Lesson:
        index = torch.randint(len(states.timesteps), (count,), generator=generator)
        return Lesson(states.noisy[index], states.timesteps[index], states.student[index], states.under_student[index])

    return draw


def pictures(denoiser: Denoiser, latents: Tensor, rows: Tensor) -> Lessons:
    """Pictures, ``latents`` ``(N, C, H, W)`` of ``rows`` of a table of prompts, noised anew each time, and nothing of
    the base model: of the concept, the protocol of CCE (arXiv 2308.01508)."""

    def draw(count: int, generator: torch.Generator) -> Lesson:
        index = torch.randint(len(latents), (count,), generator=generator)
        timesteps = torch.randint(denoiser.num_timesteps, (count,), generator=generator)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        noisy = denoiser.add_noise(clean, noise, timesteps)
        return Lesson(noisy, timesteps, rows[index], denoiser.training_target(clean, noise, timesteps))

    return draw


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
    denoiser: Denoiser,
    states: Side,
    carrier: Carrier,
    one: Try,
    steps: int,
    batch_size: int,
    seed: int,
    lessons: Lessons | None = None,
    after_step: Callable[[int, Tensor], None] = lambda step, vectors: None,
) -> Inverted:
    """Learn vectors against ``denoiser`` as it is, adapters on. ``states`` are of prompts that name the concept: what
    is left is measured on them, and they are learned from where no ``lessons`` are given.

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
    draw = lessons or predictions(states.take(learned))

    def predict(noisy: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        return denoiser.predict(
            noisy.to(denoiser.device), timesteps.to(denoiser.device), carrier.of_rows(rows, vectors)
        )

    @torch.no_grad()
    def left() -> float:
        parts = [states.take(index) for index in held_out.split(batch_size)]
        found = torch.cat([predict(part.noisy, part.timesteps, part.student).cpu() for part in parts])
        wanted, erased = states.under_student[held_out], states.under_teacher[held_out]
        return float((found - wanted).square().sum() / (erased - wanted).square().sum())

    before = left()
    for step in range(1, steps + 1):
        lesson = draw(batch_size, generator)
        loss = F.mse_loss(predict(*lesson[:3]), lesson.wanted.to(denoiser.device))
        if not torch.isfinite(loss):
            raise TrainingError(f"inversion {one.title}: the loss is not finite at step {step}; try --dtype float32")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after_step(step, vectors.detach().cpu())
    found = vectors.detach().cpu()
    return Inverted(found, before, left(), float((found - origin).square().mean().sqrt()) / carrier.unit)
