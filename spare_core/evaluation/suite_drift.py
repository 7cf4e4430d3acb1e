"""How far everything drifts that a suite has, whether an erasure named it or not.

Of each concept of a domain the base model samples a few trajectories, in the suite's own prompts. They are the same for
every erasure, so they are kept (:mod:`spare_core.runs.base_cache`) and only the adapter is asked again; and two
erasures of one model are compared on the same states.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import NULL
from spare_core.evaluation.suite import DOMAINS, Domain, Suite, domain_of
from spare_core.method.probes import HeldOut, Probe, mean_square
from spare_core.method.residual import Meter
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import Query, predict_rows, sample_trajectories
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser
from spare_core.runs.base_cache import cache_key, default_folder, keep, read_kept
from spare_core.streams import stream, stream_seed

_FORMAT: Final = 1
"""Version of what is kept; raised whenever it changes."""
_EACH: Final = 3
"""Trajectories of each concept: single ones differ by a factor of five, and the gate bounds each concept's drift."""
_PAIRS: Final = 96
"""States at which an erased concept is compared with its surrogate, for the unit of drift."""


class Asked(NamedTuple):
    """A concept in one context, a concept of the other domain."""

    name: str
    context: str


class SuiteDrift:
    """The drift of what a suite has in one domain, on the base model's trajectories of it.

    ``noisy`` and ``teacher`` are ``(N * S, C, H, W)`` for S states of each of the N prompts in ``asked``,
    ``timesteps`` ``(N * S,)``, on the CPU.

    Raises:
        TrainingError: at construction, if a prediction is not finite.
    """

    def __init__(
        self, denoiser: Denoiser, base_digest: str, suite: Suite, domain: Domain, settings: EraseSettings
    ) -> None:
        """Trajectories are sampled as ``settings`` say, unless they are kept already."""
        self.denoiser, self.suite, self.domain, self.settings = denoiser, suite, domain, settings
        self.asked = asked_of(suite, domain)
        self.states = max(1, settings.example_steps // 2)
        folder, key = default_folder("states"), self._key(base_digest)
        found = read_kept(folder, key)
        if found is None:
            found = self._sampled()
            keep(folder, key, found)
        self.noisy, self.timesteps, self.teacher = found["noisy"], found["timesteps"], found["teacher"]

    def _key(self, base_digest: str) -> str:
        facts = {
            "format": _FORMAT,
            "base": base_digest,
            "decoder": self.denoiser.files.decoder_digest,
            "prompts": [self._text(one) for one in self.asked],
            "sampling": [self.settings.example_steps, self.settings.guidance, self.settings.resolution],
        }
        return cache_key(self.denoiser, facts)

    @torch.no_grad()
    def _sampled(self) -> dict[str, Tensor]:
        table, places = self._table([NULL, *map(self._text, self.asked)])
        queries = [Query((places[self._text(one)], places[NULL]), driver=0, empty=1) for one in self.asked]
        settings, generator = self.settings, stream(0, "suite", self.domain)
        with self.denoiser.precise():
            drawn = sample_trajectories(
                self.denoiser, table, queries, settings.example_steps, settings.guidance, generator,
                settings.resolution, kept=self.states,
            )  # fmt: skip
        return {
            "noisy": torch.cat([one.noisy for one in drawn]),
            "timesteps": torch.cat([one.timesteps for one in drawn]),
            "teacher": torch.cat([one.predictions[:, 0] for one in drawn]),
        }

    @torch.no_grad()
    def measure(self, erasures: Erasures, *adapters: Adapter) -> dict[str, float]:
        """How far each concept that is not erased has moved with ``adapters`` on, in contexts that are not erased
        either, in units of the mean distance of an erased concept to its surrogate. A concept all of whose contexts are
        erased has no figure."""
        parts = [part for part in erasures if domain_of(part) == self.domain]
        spared = [
            place
            for place, one in enumerate(self.asked)
            if not erasures.erased(one.name) and not erasures.erased(one.context)
        ]
        if not spared:
            return {}
        rows = torch.tensor([place * self.states + state for place in spared for state in range(self.states)])
        some = rows[torch.linspace(0, len(rows) - 1, min(_PAIRS, len(rows))).round().long()]
        pairs = [
            self._pair(erasures, parts[i % len(parts)], self.asked[row // self.states].context)
            for i, row in enumerate(some.tolist())
        ]
        texts = [self._text(self.asked[place]) for place in spared]
        table, places = self._table([*texts, *(text for pair in pairs for text in pair)])
        names = {places[text]: self.asked[place].name for text, place in zip(texts, spared, strict=True)}
        with self.denoiser.precise():
            concepts, surrogates = (
                predict_rows(
                    self.denoiser, table, self.noisy[some], self.timesteps[some],
                    torch.tensor([places[text] for text in side]),
                )
                for side in zip(*pairs, strict=True)
            )  # fmt: skip
        retain = Probe(
            noisy=self.noisy[rows],
            timesteps=self.timesteps[rows],
            prompt=torch.tensor([places[text] for text in texts]).repeat_interleave(self.states),
            teacher=self.teacher[rows],
            unit=mean_square(concepts - surrogates).mean().expand(len(rows)),
        )
        nothing = Probe(*(part[:0] for part in retain))
        held_out = HeldOut(tuple(names.get(row, "") for row in range(len(places))), table, nothing, retain)
        return Meter(self.denoiser, held_out).drift(*adapters)

    def _table(self, texts: Sequence[str]) -> tuple[Conditioning, dict[str, int]]:
        """Each text encoded once, and its row."""
        places = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        return self.denoiser.encode_prompts([*places], self.settings.resolution), places

    def _text(self, one: Asked) -> str:
        return self.suite.prompt(*(one if self.domain == "object" else (one.context, one.name)))

    def _pair(self, erasures: Erasures, part: Erasure, context: str) -> tuple[str, str]:
        """The prompts of an erased concept and of its surrogate."""
        return self._text(Asked(part.concept, context)), self._text(Asked(erasures.surrogate(part.concept), context))


def asked_of(suite: Suite, domain: Domain) -> list[Asked]:
    """Each concept of a domain in a few contexts, the same for every erasure."""
    (other,) = (one for one in DOMAINS if one != domain)
    contexts = list(suite.names(other))
    random.Random(stream_seed(0, "suite", domain)).shuffle(contexts)
    return [
        Asked(name, contexts[(place * _EACH + i) % len(contexts)])
        for place, name in enumerate(suite.names(domain))
        for i in range(_EACH)
    ]
