"""The adversary: who wants the concept back, while it is erased.

An erasure that is taught on the concept's name alone is undone by a vector beside it (:mod:`spare_core.attacks`). So
most of a step's forget rows are asked as attackers would ask them. Each is an attacker with vectors of its own, tokens
in place of the concept's name or something added to what the text encoder has made of it, and moves them by Adam, step
after step against the model as it has become, to make it predict what the frozen one predicts under the concept:

    d = argmin over d   ||eps_D(x_t, c(d)) - eps(x_t, c)||^2

What its row is taught is to lose what it has won, and no more. With p = eps_D(x_t, c(d)) and the way
w = eps(x_t, c) - eps(x_t, s) from the surrogate to the concept,

    target = p - max(0, a) w,    a = <p - eps(x_t, s), w> / ||w||^2

An attacker who has come to something else instead, the name of a kept concept, is left there: pulled to the surrogate,
it took kept concepts along (docs/failures.md). The other rows stay under the plain name and are taught the surrogate.

Attackers begin anew at every measurement, where a run may be interrupted: so they need not be kept.

Adversarial training (arXiv 1706.06083) is the idea; AdvUnlearn (2405.15234), RECE (2407.12383) and STEREO (2408.16807)
have it for diffusion models, each with another adversary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from spare_core.method.bank import Bank, Side
from spare_core.method.places import concept_length, concept_places, put_vectors, unsaid
from spare_core.method.settings import EraseSettings
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import FP16_LOSS_SCALE, Denoiser
from spare_core.streams import stream

_PLAIN: Final = 4
"""One row in so many is attacked by nobody; of fewer, one in every so many steps."""
_SEVERAL: Final = 0.3
"""Share of the attackers with several vectors, and the most of them."""
_MOST: Final = 4
_TOKENS: Final = 3.0
"""How much faster tokens are moved than what is added behind the text encoder: they must reach as far."""
_BETAS: Final = (0.9, 0.99)


@dataclass
class _Attacker:
    """``vectors`` ``(V, D)``, tokens if ``reads``, else added to what the text encoder has made
    (:func:`spare_core.method.places.put_vectors`). ``first`` and ``second`` are Adam's moments after so many
    ``steps``."""

    vectors: Tensor
    reads: bool
    rate: float
    first: Tensor
    second: Tensor
    steps: int = 0

    def move(self, slope: Tensor) -> None:
        """One step of Adam down ``slope``."""
        self.steps += 1
        for moment, beta, part in zip((self.first, self.second), _BETAS, (slope, slope.square()), strict=True):
            moment.lerp_(part, 1 - beta)
        first, second = (
            moment / (1 - beta**self.steps) for moment, beta in zip((self.first, self.second), _BETAS, strict=True)
        )
        self.vectors = self.vectors - self.rate * first / second.sqrt().clamp_min(torch.finfo(second.dtype).tiny)


class Adversary:
    """The forget side of a step: see :class:`spare_core.method.batches.Batches`."""

    def __init__(self, denoiser: Denoiser, bank: Bank, settings: EraseSettings) -> None:
        self.denoiser, self.bank, self.settings = denoiser, bank, settings
        self._places = {
            row: concept_places(denoiser, [bank.prompts[row]], bank.names[row])[0]
            for row in dict.fromkeys(bank.forget.student.tolist())
        }
        self._words = unsaid(denoiser, bank.prompts, _MOST)
        tokens = {name: denoiser.input_embeddings(name) for name in {bank.names[row] for row in self._places}}
        self._origins = {name: own.mean(dim=0) for name, own in tokens.items()}
        self._units = {True: float(torch.cat([*tokens.values()]).square().mean().sqrt())}
        self._units[False] = concept_length(bank.table, self._places)
        self._generation, self._attackers = -1, dict[tuple[int, str], _Attacker]()

    def __call__(self, side: Side, step: int) -> tuple[Conditioning, Tensor]:
        """What the rows of ``side`` are conditioned on, against the model as it is now, adapter on; and the way to the
        concept that each attacked one is not to have gone, else zero."""
        generation = step // self.settings.measure_every
        if generation != self._generation:
            self._generation, self._attackers = generation, {}
        rows = side.student.tolist()
        count = len(rows) - (len(rows) // _PLAIN or int(step % _PLAIN == 0))
        attackers = [self._attacker(place, self.bank.names[row]) for place, row in enumerate(rows[:count])]
        noisy, timesteps, concept = (
            part[:count].to(self.denoiser.device) for part in (side.noisy, side.timesteps, side.under_student)
        )
        scale = FP16_LOSS_SCALE if self.denoiser.dtype is torch.float16 else 1.0
        for _ in range(self.settings.adversary_steps if attackers else 0):
            moves = [one.vectors.requires_grad_(True) for one in attackers]
            found = self.denoiser.predict(noisy, timesteps, self._conditioning(rows[:count], attackers))
            wrong = (found - concept).square().mean(dim=(1, 2, 3)).sum()
            for one, slope in zip(attackers, torch.autograd.grad(scale * wrong, moves), strict=True):
                one.vectors = one.vectors.detach()
                one.move(slope / scale)
        with torch.no_grad():
            asked = self._conditioning(rows, attackers)
        way = side.under_student - side.under_teacher
        way[count:] = 0.0
        return asked.to(self.bank.table.prompt_embeds.device), way

    def _attacker(self, place: int, name: str) -> _Attacker:
        """Who attacks ``name`` from a place of the batch, of this generation."""
        if (place, name) not in self._attackers:
            settings, reads = self.settings, place % 2 == 0
            generator = stream(settings.seed, "adversary", self._generation, place, name)
            several = float(torch.rand(1, generator=generator)) < _SEVERAL
            count = int(torch.randint(2, 1 + _MOST, (1,), generator=generator)) if several else 1
            reach = settings.adversary_reach * float(torch.rand(1, generator=generator))
            origin = self._origins[name] if reads else torch.zeros(self.bank.table.prompt_embeds.shape[2])
            away = torch.randn(count, len(origin), generator=generator)
            vectors = (origin + reach * self._units[reads] * away).to(self.denoiser.device)
            rate = settings.adversary_rate * self._units[reads] * (_TOKENS if reads else 1.0)
            self._attackers[place, name] = _Attacker(
                vectors, reads, rate, torch.zeros_like(vectors), torch.zeros_like(vectors)
            )
        return self._attackers[place, name]

    def _conditioning(self, rows: Sequence[int], attackers: Sequence[_Attacker]) -> Conditioning:
        """The bank's ``rows``, the first ones each as its attacker has it, with the gradient of that."""
        prompts = [self.bank.prompts[row] for row in rows]
        width = len(next(iter(self._origins.values())))
        tokens = torch.zeros(len(rows), len(self._words), width, device=self.denoiser.device)
        for place, one in enumerate(attackers):
            if one.reads:
                count, name = len(one.vectors), self.bank.names[rows[place]]
                prompts[place] = prompts[place].replace(name, " ".join(self._words[:count]), 1)
                tokens[place, :count] = one.vectors
        encoded = self.denoiser.encode_as(prompts, self._words, tokens, self.settings.resolution)
        added = torch.zeros_like(encoded.prompt_embeds)
        for place, one in enumerate(attackers):
            if not one.reads:
                put_vectors(added[place], self._places[rows[place]], one.vectors)
        return Conditioning(encoded.prompt_embeds + added, encoded.added)


def adversary_of(denoiser: Denoiser, bank: Bank, settings: EraseSettings) -> Adversary | None:
    """The adversary that settings ask for, if any."""
    return None if settings.adversary == "none" else Adversary(denoiser, bank, settings)
