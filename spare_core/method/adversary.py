"""The adversary: who wants the concept back, while it is erased.

An erasure that is taught on the concept's name alone is undone by a vector beside it (:mod:`spare_core.attacks`). So
each step's forget rows are asked under conditioning that was moved first, where the concept stands in the prompt, to
make the adapted model predict what the frozen one predicts under the concept:

    d = argmin over d   ||eps_D(x_t, c + d) - eps(x_t, c)||^2

by a few normalised gradient steps, each row by itself, from chance as far out as an attacker goes. What they are taught
stays the surrogate's prediction. In some steps every place from the concept's first on has a vector of its own, as an
attacker who writes several tokens has; some rows stay under the plain name.

Adversarial training (arXiv 1706.06083) is the idea; AdvUnlearn (2405.15234), RECE (2407.12383) and STEREO (2408.16807)
have it for diffusion models, each with another adversary.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from spare_core.method.bank import Bank, Side
from spare_core.method.places import concept_length, concept_places, from_first
from spare_core.method.settings import EraseSettings
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import FP16_LOSS_SCALE, Denoiser
from spare_core.streams import stream

_PLAIN: Final = 0.25
"""Share of the rows that the adversary leaves alone."""
_SEVERAL: Final = 0.4
"""Share of the steps in which several vectors are moved, and the most of them."""
_MOST: Final = 8


class Adversary:
    """Moves what the student is conditioned on; see :class:`spare_core.method.batches.Batches`."""

    def __init__(self, denoiser: Denoiser, bank: Bank, settings: EraseSettings) -> None:
        self.denoiser, self.bank, self.settings = denoiser, bank, settings
        self._places: dict[int, list[int]] = {}
        for row in dict.fromkeys(bank.forget.student.tolist()):
            (self._places[row],) = concept_places(denoiser, [bank.prompts[row]], bank.names[row])
        self._unit = concept_length(bank.table, self._places)

    def __call__(self, side: Side, step: int) -> Conditioning:
        """The conditioning of the rows of ``side``, moved against the model as it is now, adapter on."""
        device, settings = self.denoiser.device, self.settings
        generator = stream(settings.seed, "adversary", step)
        table = self.bank.table[side.student].to(device)
        count, length, width = table.prompt_embeds.shape
        several = float(torch.rand(1, generator=generator)) < _SEVERAL
        where = torch.zeros(count, length, 1)
        for i, row in enumerate(side.student.tolist()):
            places, most = self._places[row], int(torch.randint(1, 1 + _MOST, (1,), generator=generator))
            where[i, from_first(places, most, length) if several else places] = 1.0
        start = torch.randn((count, length if several else 1, width), generator=generator)
        reach = settings.adversary_reach * torch.rand((count, 1, 1), generator=generator)
        moved = (torch.rand((count, 1, 1), generator=generator) >= _PLAIN).float()
        where, delta = where.to(device), (start * reach * self._unit).to(device)
        noisy, timesteps = side.noisy.to(device), side.timesteps.to(device)
        wanted = side.under_student.to(device)
        scale = FP16_LOSS_SCALE if self.denoiser.dtype is torch.float16 else 1.0
        for _ in range(settings.adversary_steps):
            delta = delta.requires_grad_(True)
            found = self.denoiser.predict(noisy, timesteps, _added(table, delta * where))
            (slope,) = torch.autograd.grad(scale * (found - wanted).square().mean(dim=(1, 2, 3)).sum(), delta)
            delta = (delta - self._step(slope)).detach()
        return _added(table, delta * where * moved.to(device)).to(self.bank.table.prompt_embeds.device)

    def _step(self, slope: Tensor) -> Tensor:
        """Of each vector as long as :attr:`EraseSettings.adversary_rate` says, in root mean squares of the concept."""
        squares = slope.square().mean(dim=2, keepdim=True)
        size = (squares.sum(dim=1, keepdim=True) / (squares > 0).sum(dim=1, keepdim=True).clamp(min=1)).sqrt()
        return self.settings.adversary_rate * self._unit * slope / size.clamp(min=torch.finfo(size.dtype).tiny)


def _added(table: Conditioning, delta: Tensor) -> Conditioning:
    return Conditioning(table.prompt_embeds + delta.to(table.prompt_embeds), table.added)


def adversary_of(denoiser: Denoiser, bank: Bank, settings: EraseSettings) -> Adversary | None:
    """The adversary that settings ask for, if any."""
    return None if settings.adversary == "none" else Adversary(denoiser, bank, settings)
