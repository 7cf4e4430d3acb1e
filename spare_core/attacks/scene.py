"""The pictures by which attacks on one concept are judged: the concept's cells of a suite, drawn under other words or
other vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.names import normalise
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.metrics import wilson_interval
from spare_core.evaluation.suite import Domain, Suite
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser

_STRIP: Final = 8
"""Pictures of a strip."""
Encode = Callable[[Sequence[str], int], Conditioning]
"""How an attack encodes prompts for pictures of a resolution."""


class Scene:
    """One concept of a suite, in its contexts and seeds, as the suite's judge sees it. ``strip`` ``(3, H, 8 W)``: some
    of the pictures that were judged last, for people.

    ``least`` is the probability that the judge must give the concept for a picture to show it; 0: that no other name is
    likelier, which a judge says of what is none of them, too."""

    def __init__(
        self, denoiser: Denoiser, suite: Suite, judge: Judge, domain: Domain, concept: str, least: float = 0.0
    ) -> None:
        self.denoiser, self.suite, self.judge, self.domain, self.least = denoiser, suite, judge, domain, least
        self.row = suite.find(concept, domain)
        self.concept = suite.names(domain)[self.row]
        cells = suite.all_cells({domain: (self.row,)})
        own = ((cells.styles if domain == "style" else cells.objects) == self.row).nonzero().flatten()
        self.strip = torch.zeros(3, 1, 1)
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

    def own_seeds(self, count: int) -> list[int]:
        """The seeds of the pictures of :meth:`prompts`."""
        return [self._seeds[i] for i in self._spread(count)]

    def unrelated(self, count: int, besides: Sequence[str]) -> list[str]:
        """As many prompts of the same form that name others of the concept's domain, none of ``besides``."""
        gone = {normalise(name) for name in (self.concept, *besides)}
        others = [name for name in self.suite.names(self.domain) if normalise(name) not in gone]
        own = self.prompts(count)
        if not others:
            return []
        return [self.prompts(count, others[i % len(others)])[i % len(own)] for i in range(count)]

    def draw(self, encoded: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Latents ``(N, C, H, W)`` of pictures, as the suite samples them."""
        suite = self.suite
        return self.denoiser.sample(encoded, seeds, suite.steps, suite.guidance, suite.resolution)

    def seen(self, latents: Tensor) -> list[bool]:
        """In which pictures the judge names the concept; the first of them are :attr:`strip` then."""
        pixels = self.denoiser.decode_latents(latents)
        self.strip = torch.cat([*pixels[:_STRIP].cpu()], dim=2)
        judged = self.judge.judge(pixels)
        named = judged.styles if self.domain == "style" else judged.objects
        return ((named.predicted == self.row) & (named.probabilities[:, self.row] >= self.least)).tolist()

    def shown(
        self, prompts: Sequence[str], encode: Encode | None = None, seeds: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """How often the judge names the concept in pictures of ``prompts``, one of each, with the seeds of the
        concept's own pictures unless others are given."""
        encoded = (encode or self.denoiser.encode_prompts)(prompts, self.suite.resolution)
        return counted(self.seen(self.draw(encoded, seeds or self.own_seeds(len(prompts)))))

    def _spread(self, count: int) -> list[int]:
        """Up to ``count`` of the concept's cells, at equal distances."""
        there = len(self._seeds)
        return [int(i) for i in torch.linspace(0, there - 1, min(count, there))]


def counted(seen: Sequence[bool]) -> dict[str, Any]:
    """The share of pictures that ``shown`` the concept, with its interval."""
    share = sum(seen) / len(seen)
    return {"shown": share, "interval": list(wilson_interval(share, len(seen))), "pictures": len(seen)}


@contextlib.contextmanager
def wearing(denoiser: Denoiser, adapters: Sequence[Adapter]) -> Iterator[None]:
    """The model with adapters on, whose weights no attack learns."""
    with contextlib.ExitStack() as stack:
        for adapter in adapters:
            for parameter in adapter.to(denoiser.device).parameters():
                parameter.requires_grad_(False)
            stack.enter_context(adapter.attached(denoiser))
        yield
