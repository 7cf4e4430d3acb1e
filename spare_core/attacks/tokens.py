"""Learned tokens in the place of a concept's name: textual inversion, through the text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from spare_core.errors import ConceptError
from spare_core.method.bank import Bank
from spare_core.method.places import unsaid
from spare_core.models.conditioning import Conditioning
from spare_core.models.unet import UNetDenoiser

_MOST: Final = 16
"""Learned tokens at most."""


class OnTokens:
    """Implements :class:`spare_core.attacks.inversion.Carrier`.

    A vector ``(D,)`` holds an input embedding for each text encoder, one after the other. Words of the vocabulary that
    no prompt has stand for the tokens in texts (:meth:`UNetDenoiser.encode_as`).

    Raises:
        ConceptError: at construction, if a prompt does not name the concept as it is written.
    """

    def __init__(self, denoiser: UNetDenoiser, bank: Bank, concept: str, name: str) -> None:
        self.denoiser, self.prompts, self.concept, self.name = denoiser, bank.prompts, concept, name
        self._free = unsaid(denoiser, [*bank.prompts, name], _MOST)
        own = denoiser.input_embeddings(concept)
        self._mean, self.unit = own.mean(dim=0), float(own.square().mean().sqrt())

    def origin(self, count: int) -> Tensor:
        """The mean of the concept's own tokens."""
        return self._mean.expand(count, -1).clone()

    def of_rows(self, rows: Tensor, vectors: Tensor) -> Conditioning:
        """See :class:`spare_core.attacks.inversion.Carrier`."""
        return self._encoded([self.prompts[row] for row in rows.tolist()], self.concept, vectors)

    def of_prompts(self, prompts: Sequence[str], vectors: Tensor, resolution: int = 0) -> Conditioning:
        """See :class:`spare_core.attacks.inversion.Carrier`."""
        with torch.no_grad():
            return self._encoded(prompts, self.name, vectors.to(self.denoiser.device), resolution)

    def _encoded(self, prompts: Sequence[str], name: str, vectors: Tensor, resolution: int = 0) -> Conditioning:
        missing = next((prompt for prompt in prompts if name not in prompt), None)
        if missing is not None:
            raise ConceptError(f"{missing!r} does not name {name!r}; a learned token takes the place of the name")
        words = self._free[: len(vectors)]
        texts = [prompt.replace(name, " ".join(words), 1) for prompt in prompts]
        return self.denoiser.encode_as(texts, words, vectors, resolution)
