"""Vectors that are added to what the text encoder has made of a prompt, where the concept stands in it.

More than any prompt can reach: what withstands this withstands learned tokens and searched prompts of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spare_core.method.bank import Bank
from spare_core.method.places import concept_length, concept_places, put_vectors
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
    """``vectors`` ``(V, D)`` added to rows of a table of prompts, each at its concept's ``places``."""
    delta = torch.zeros_like(table.prompt_embeds)
    for row, some in enumerate(places):
        put_vectors(delta[row], some, vectors)
    return Conditioning(table.prompt_embeds + delta, table.added)
