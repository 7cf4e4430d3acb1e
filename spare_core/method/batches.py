"""What one training step sees: states drawn from the bank, as many of each side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from spare_core.method.bank import Bank, Side
from spare_core.method.gap import StateSampler, TimestepProfile, TimestepSampler
from spare_core.method.settings import EraseSettings
from spare_core.models.conditioning import Conditioning
from spare_core.streams import stream

_NULL_SHARE: Final = 0.125
"""Share of the retain side that holds the empty prompt, on states of both sides: guidance asks it wherever sampling
passes, and needs it as it was."""


class Batch(NamedTuple):
    """B noisy latents ``(B, C, H, W)`` at ``timesteps`` ``(B,)``, their conditioning, and the ``target`` prediction.

    Rows with a ``way`` ``(B, C, H, W)`` that is not zero are taught something else: what they predict, without what
    that has of the way from the target on.
    """

    noisy: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    target: Tensor
    way: Tensor

    def taught(self, found: Tensor) -> Tensor:
        """What rows that predict ``found`` are taught."""
        attacked = self.way.flatten(1).any(dim=1)[:, None, None, None]
        return torch.where(attacked, without(found, self.target, self.way), self.target)

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """Rows of all ``parts``, one after the other."""
        noisy, timesteps, conditioning, target, way = zip(*parts, strict=True)
        return Batch(
            torch.cat(noisy), torch.cat(timesteps), Conditioning.cat(conditioning), torch.cat(target), torch.cat(way)
        )

    def to(self, device: torch.device) -> Batch:
        """This batch on ``device``."""
        noisy, timesteps, target, way = (
            part.to(device) for part in (self.noisy, self.timesteps, self.target, self.way)
        )
        return Batch(noisy, timesteps, self.conditioning.to(device), target, way)


def without(found: Tensor, start: Tensor, way: Tensor) -> Tensor:
    """Predictions ``(B, C, H, W)`` without what they have of the ``way`` that begins at ``start``."""
    size = way.square().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(way.dtype).tiny)
    along = ((found - start) * way).sum(dim=(1, 2, 3), keepdim=True) / size
    return found - along.clamp_min(0) * way


class Batches:
    """Draws the batches of a run. All chance of a step comes from a generator seeded by (seed, step).

    ``asking`` says what the student is conditioned on for rows of the forget side at a step, and which way they are not
    to have gone, as an adversary does; if none is given, the rows of the prompt table that name the concept.
    """

    def __init__(
        self,
        bank: Bank,
        profile: TimestepProfile,
        settings: EraseSettings,
        asking: Callable[[Side, int], tuple[Conditioning, Tensor]] | None = None,
    ) -> None:
        self.bank, self.settings = bank, settings
        self._asking = asking or (lambda side, _: (bank.table[side.student], torch.zeros_like(side.under_teacher)))
        sampler = TimestepSampler.from_profile(profile, settings)
        self._forget = StateSampler(sampler, bank.forget.timesteps)
        self._retain = StateSampler(sampler, bank.retain.timesteps)
        self._empty = StateSampler(sampler, torch.cat([bank.retain.timesteps, bank.forget.timesteps]))

    def draw(self, step: int) -> tuple[Batch, Batch]:
        """Forget and retain side of ``step``, ``batch_size`` rows each. An adversary asks the model as it is now, with
        the adapter on."""
        size = self.settings.batch_size
        generator = stream(self.settings.seed, "batch", step)
        forget = self.bank.forget.take(self._forget.sample(size, generator))
        # Fractions of a row add up over the steps.
        empty = int((step + 1) * _NULL_SHARE * size) - int(step * _NULL_SHARE * size)
        parts = []
        if size > empty:
            retain = self.bank.retain.take(self._retain.sample(size - empty, generator))
            table = self.bank.table[retain.student]
            parts.append(_held(retain.noisy, retain.timesteps, table, retain.under_student))
        if empty:
            parts.append(self._under_empty(self._empty.sample(empty, generator)))
        conditioning, way = self._asking(forget, step)
        own = Batch(forget.noisy, forget.timesteps, conditioning, forget.under_teacher, way)
        return own, Batch.cat(parts)

    def _under_empty(self, index: Tensor) -> Batch:
        """States of both sides under the empty prompt; those of the forget side come after the retain side's."""
        count = len(self.bank.retain.timesteps)
        sides = [(self.bank.retain, i) if i < count else (self.bank.forget, i - count) for i in index.tolist()]
        return _held(
            torch.stack([side.noisy[i] for side, i in sides]),
            torch.stack([side.timesteps[i] for side, i in sides]),
            self.bank.table[[self.bank.null_row] * len(index)],
            torch.stack([side.under_empty[i] for side, i in sides]),
        )


def _held(noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, target: Tensor) -> Batch:
    """Rows that are held to their target."""
    return Batch(noisy, timesteps, conditioning, target, torch.zeros_like(target))
