"""Which concepts lie next to one, as the model sees them: what could replace it, and what it could take along.

The distance between two concepts is how far the frozen model's predictions under them lie apart, on trajectories that
the first one drives, in units of how far it lies from the empty prompt:

    d(c, k) = E ||eps(x_t, c) - eps(x_t, k)||^2 / E ||eps(x_t, c) - eps(x_t, "")||^2

Surrogates and local retain concepts chosen so: LACU (arXiv 2512.02657), with 32 samples.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.names import alike, bare_name
from spare_core.concepts.prompts import NULL
from spare_core.errors import ConceptError, InputError
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import Query, sample_trajectories
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream, stream_seed

_CONTEXTS: Final = 4
"""Trajectories, each in a context of its own; with eight states each, 32 samples of a distance."""
_FREQUENT: Final = 20_000
"""Words among which the nearest are looked for, those of most texts."""
_COMPARED: Final = 12
"""Of these, as many as the predictions are asked about, the nearest by the tokenizer's table."""
_CONCEPTS: Final = 8
"""Erased concepts of a list whose neighbours are looked for, the first ones."""


class Neighbour(NamedTuple):
    """A candidate and its distance: 0 the same concept, 1 as far as no concept at all."""

    name: str
    distance: float


def nearest_unnamed(denoiser: Denoiser, erasures: Erasures, settings: EraseSettings, count: int) -> dict[str, Erasure]:
    """Words of the vocabulary that lie nearest to the erased concepts and that no request names, ``count`` for each
    concept, with the erasure each is a neighbour of."""
    named = {bare_name(name) for part in erasures for name in (*part.names, part.surrogate, *part.keep)}
    words = [word for word in erasures.other_words(denoiser.words())[:_FREQUENT] if bare_name(word) not in named]
    if not words:
        return {}
    parts = erasures.parts[:_CONCEPTS]
    coarse = dataclasses.replace(settings, example_steps=max(1, settings.example_steps // 2))
    vectors = F.normalize(denoiser.word_vectors([*words, *(part.concept for part in parts)]), dim=1)
    found: dict[str, Erasure] = {}
    for part, own in zip(parts, vectors[len(words) :], strict=True):
        order = (vectors[: len(words)] @ own).argsort(descending=True)[:_COMPARED]
        near = rank_neighbours(denoiser, part, [words[i] for i in order.tolist()], coarse, contexts=1)
        found |= {one.name: part for one in near[:count] if one.name not in found}
    return found


def rank_neighbours(
    denoiser: Denoiser,
    erasure: Erasure,
    candidates: Sequence[str],
    settings: EraseSettings,
    contexts: int = _CONTEXTS,
) -> list[Neighbour]:
    """The candidates, nearest first, other than the concept's own names, in so many ``contexts``. The surrogate of
    ``erasure`` plays no part.

    Raises:
        ConceptError: if no candidate is left, or one of the prompts is too long for the model.
        InputError: if the model does not know the concept.
    """
    names = [name for name in candidates if not any(alike(name, own) for own in erasure.names)]
    if not names:
        raise ConceptError(f"there is no candidate to replace {erasure.concept!r}; name one or more others")
    shown = list(erasure.contexts or ("",))
    random.Random(stream_seed(settings.seed, "neighbours")).shuffle(shown)
    shown = shown[:contexts]
    prompts = [NULL, *(erasure.prompt(name, context) for context in shown for name in (erasure.concept, *names))]
    denoiser.check_prompts(prompts)
    table = denoiser.encode_prompts(prompts, settings.resolution)
    width = 1 + len(names)
    asked = [Query((*range(1 + i * width, 1 + (i + 1) * width), 0), driver=0, empty=width) for i in range(len(shown))]
    generator = stream(settings.seed, "neighbours")
    driven = sample_trajectories(
        denoiser, table, asked, settings.example_steps, settings.guidance, generator, settings.resolution
    )
    predictions = torch.cat([one.predictions for one in driven]).double()  # (contexts * steps, concept, names, empty)
    apart = (predictions - predictions[:, :1]).square().flatten(2).mean(dim=2).mean(dim=0)
    unit = float(apart[-1])
    if unit == 0:
        raise InputError(
            f"{erasure.concept!r}: the model predicts the same noise for the concept and for no concept at all: it "
            "does not know it, so there is nothing to erase; check the spelling"
        )
    distances = [float(value) / unit for value in apart[1:-1]]
    return sorted(map(Neighbour, names, distances), key=lambda one: (one.distance, one.name))
