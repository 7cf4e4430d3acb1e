"""What a prediction is conditioned on: prompts as a model's text encoders gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What a prediction is conditioned on.

    ``prompt_embeds``: ``(B, L, D)``; ``added``: further tensors with leading ``B`` (SDXL: ``text_embeds`` and
    ``time_ids``). Indexing takes rows.
    """

    prompt_embeds: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Conditioning:
        return Conditioning(self.prompt_embeds[index], {name: value[index] for name, value in self.added.items()})

    def to(self, device: torch.device) -> Conditioning:
        """This conditioning on ``device``."""
        return Conditioning(
            self.prompt_embeds.to(device), {name: value.to(device) for name, value in self.added.items()}
        )

    def as_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a file."""
        return {"table/prompt_embeds": self.prompt_embeds, **{f"table/added/{k}": v for k, v in self.added.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Conditioning:
        """The inverse of :meth:`as_tensors`, among whatever else ``tensors`` holds."""
        start = "table/added/"
        added = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        return cls(tensors["table/prompt_embeds"], added)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of all ``parts``, one after the other."""
        return Conditioning(
            torch.cat([part.prompt_embeds for part in parts]),
            {name: torch.cat([part.added[name] for part in parts]) for name in parts[0].added},
        )
