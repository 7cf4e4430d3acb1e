"""Concept inversion on the conditioning: vectors that bring a concept back without its name.

    min over v   E || eps_adapted(x_t, c + v) - eps_base(x_t, c) ||^2

``v`` is added to the embedding of the prompt ``c`` where the concept stands in it (:mod:`spare_core.attacks.places`).
The attacker knows the base model's own predictions, which is more than pictures say, and moves what the text encoder
has made, which is more than any prompt can reach: what withstands this withstands learned tokens and searched prompts
of the same length. Textual inversion (arXiv 2208.01618) is the idea; against erased models it is concept inversion
(arXiv 2308.01508), whose own protocol learns from pictures and through the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.errors import TrainingError
from spare_core.method.bank import Side
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream

_WIDE: Final = 0.3
"""Deviation of where restarts begin, in root mean squares of the embedding; the first try begins at nothing."""
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
    that were not learned from (1: as far as the erased prediction, 0: there); their length in lengths of an embedding
    of the concept."""

    vectors: Tensor
    left_before: float
    left: float
    length: float


def moved(table: Conditioning, places: Sequence[Sequence[int]], vectors: Tensor) -> Conditioning:
    """``vectors`` ``(V, D)`` added to rows of a table of prompts. One vector is added at each of a prompt's ``places``;
    several are added one after the other from the first place on, as if the concept had so many tokens."""
    embeds = table.prompt_embeds
    width = embeds.shape[1]
    delta = torch.zeros_like(embeds)
    for row, some in enumerate(places):
        if len(vectors) == 1:
            delta[row, list(some)] = vectors[0].to(delta)
        else:
            where = range(some[0], min(width, some[0] + len(vectors)))
            delta[row, list(where)] = vectors[: len(where)].to(delta)
    return Conditioning(embeds + delta, table.added)


def invert(
    denoiser: Denoiser,
    states: Side,
    table: Conditioning,
    places: Sequence[Sequence[int]],
    one: Try,
    steps: int,
    batch_size: int,
    seed: int,
) -> Inverted:
    """Learn vectors against ``denoiser`` as it is, adapters on. ``places`` has one entry for each row of ``table``;
    only those of the rows that ``states`` has as students are used.

    Raises:
        TrainingError: if a loss is not finite.
    """
    rows = states.student.unique()
    own = torch.cat([table.prompt_embeds[row][list(places[row])] for row in rows.tolist()]).float()
    unit = float(own.square().mean().sqrt())
    generator = stream(seed, "inversion", one.title)
    start = torch.randn(one.vectors, own.shape[1], generator=generator) * unit * _WIDE * min(1, one.restart)
    vectors = torch.nn.Parameter(start.to(denoiser.device))
    optimizer = torch.optim.Adam([vectors], lr=one.rate * unit)
    order = torch.randperm(len(states.timesteps), generator=generator)
    held_out, learned = order[: len(order) // _HELD_OUT], order[len(order) // _HELD_OUT :]

    def predict(index: Tensor) -> Tensor:
        batch = states.student[index]
        conditioning = moved(table[batch], [places[row] for row in batch.tolist()], vectors)
        noisy, timesteps = states.noisy[index].to(denoiser.device), states.timesteps[index].to(denoiser.device)
        return denoiser.predict(noisy, timesteps, conditioning)

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
    return Inverted(found, before, left(), float(found.square().mean().sqrt()) / unit)
