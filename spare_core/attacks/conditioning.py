"""Vectors that are added to what the text encoder has made of a prompt, where the concept stands in it.

More than any prompt can reach: what withstands this withstands learned tokens and searched prompts of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spare_core.method.bank import Bank
from spare_core.method.places import concept_length, concept_places, from_first
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser


class OnConditioning:
    """Implements :class:`spare_core.attacks.inversion.Carrier`; ``concept`` is as the bank's prompts name it, ``name``
    as other prompts do."""

    def __init__(self, denoiser: Denoiser, bank: Bank, concept: str, name: str) -> None:
        self.denoiser, self.table, self.name = denoiser, bank.table, name
        self.places = concept_places(denoiser, bank.prompts, concept)
        naming = {row: self.places[row] for row, other in enumerate(bank.names) if other == concept}
        self.unit, self._width = concept_length(bank.table, naming), bank.table.prompt_embeds.shape[2]

    def origin(self, count: int) -> Tensor:
        """The concept's embedding as it is."""
        return torch.zeros(count, self._width)

    def of_rows(self, rows: Tensor, vectors: Tensor) -> Conditioning:
        """See :class:`spare_core.attacks.inversion.Carrier`."""
        return moved(self.table[rows], [self.places[row] for row in rows.tolist()], vectors)

    def of_prompts(self, prompts: Sequence[str], vectors: Tensor, resolution: int = 0) -> Conditioning:
        """See :class:`spare_core.attacks.inversion.Carrier`."""
        encoded = self.denoiser.encode_prompts(prompts, resolution)
        return moved(encoded, concept_places(self.denoiser, prompts, self.name), vectors)


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
            where = from_first(some, len(vectors), width)
            delta[row, list(where)] = vectors[: len(where)].to(delta)
    return Conditioning(embeds + delta, table.added)
