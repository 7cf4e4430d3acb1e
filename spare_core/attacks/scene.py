"""The pictures by which attacks on one concept are judged: the concept's cells of a suite, drawn under other words or
other vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from spare_core.adapters.low_rank import Adapter
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.metrics import wilson_interval
from spare_core.evaluation.suite import Domain, Suite
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser

Encode = Callable[[Sequence[str], int], Conditioning]
"""How an attack encodes prompts for pictures of a resolution."""


class Scene:
    """One concept of a suite, in its contexts and seeds, as the suite's judge sees it."""

    def __init__(self, denoiser: Denoiser, suite: Suite, judge: Judge, domain: Domain, concept: str) -> None:
        self.denoiser, self.suite, self.judge, self.domain = denoiser, suite, judge, domain
        self.row = suite.find(concept, domain)
        self.concept = suite.names(domain)[self.row]
        cells = suite.all_cells({domain: (self.row,)})
        own = ((cells.styles if domain == "style" else cells.objects) == self.row).nonzero().flatten()
        self._contexts = [int(row) for row in (cells.objects if domain == "style" else cells.styles)[own]]
        self._seeds = [int(seed) for seed in cells.seeds[own]]

    def prompts(self, count: int, text: str = "") -> list[str]:
        """Up to ``count`` prompts, spread over the suite's contexts and seeds, that call the concept ``text``."""
        named = text or self.concept
        contexts = self.suite.objects if self.domain == "style" else self.suite.styles
        some = [contexts[self._contexts[i]] for i in self._spread(count)]
        return [
            self.suite.prompt(other, named) if self.domain == "style" else self.suite.prompt(named, other)
            for other in some
        ]

    def seeds(self, count: int) -> list[int]:
        """Distinct seeds for pictures of one prompt: the suite's, then those after the last of them."""
        own = list(self.suite.seeds)
        return [*own, *range(max(own) + 1, max(own) + 1 + count)][:count]

    def shown(
        self, prompts: Sequence[str], encode: Encode | None = None, seeds: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """How often the judge names the concept in pictures of ``prompts``, one of each, with the seeds of the
        concept's own pictures unless others are given."""
        suite = self.suite
        encoded = (encode or self.denoiser.encode_prompts)(prompts, suite.resolution)
        seeds = seeds or [self._seeds[i] for i in self._spread(len(prompts))]
        latents = self.denoiser.sample(encoded, seeds, suite.steps, suite.guidance, suite.resolution)
        judged = self.judge.judge(self.denoiser.decode_latents(latents))
        seen = (judged.styles if self.domain == "style" else judged.objects).predicted == self.row
        share = float(seen.float().mean())
        return {"shown": share, "interval": list(wilson_interval(share, len(seen))), "pictures": len(seen)}

    def _spread(self, count: int) -> list[int]:
        """Up to ``count`` of the concept's cells, at equal distances."""
        there = len(self._seeds)
        return [int(i) for i in torch.linspace(0, there - 1, min(count, there))]


@contextlib.contextmanager
def wearing(denoiser: Denoiser, adapters: Sequence[Adapter]) -> Iterator[None]:
    """The model with adapters on, whose weights no attack learns."""
    with contextlib.ExitStack() as stack:
        for adapter in adapters:
            for parameter in adapter.to(denoiser.device).parameters():
                parameter.requires_grad_(False)
            stack.enter_context(adapter.attached(denoiser))
        yield
