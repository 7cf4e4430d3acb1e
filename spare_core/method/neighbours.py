"""Which concepts lie next to one, as the model sees them: what could replace it, and what it could take along.

The distance between two concepts is how far the frozen model's predictions under them lie apart, on trajectories that
the first one drives, in units of how far it lies from the empty prompt:

    d(c, k) = E ||eps(x_t, c) - eps(x_t, k)||^2 / E ||eps(x_t, c) - eps(x_t, "")||^2

Surrogates and local retain concepts chosen so: LACU (arXiv 2512.02657), with 32 samples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from spare_core.concepts.concept import Erasure, alike
from spare_core.concepts.prompts import NULL
from spare_core.errors import ConceptError
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import Query, sample_trajectories
from spare_core.models.unet import UNetDenoiser
from spare_core.streams import stream, stream_seed

_CONTEXTS: Final = 4
"""Trajectories, each in a context of its own; with eight states each, 32 samples of a distance."""


class Neighbour(NamedTuple):
    """A candidate and its distance: 0 the same concept, 1 as far as no concept at all."""

    name: str
    distance: float


def rank_neighbours(
    denoiser: UNetDenoiser, erasure: Erasure, candidates: Sequence[str], settings: EraseSettings
) -> list[Neighbour]:
    """The candidates, nearest first, other than the concept's own names. The surrogate of ``erasure`` plays no part.

    Raises:
        ConceptError: if no candidate is left, or one of the prompts is too long for the model.
    """
    names = [name for name in candidates if not any(alike(name, own) for own in erasure.names)]
    if not names:
        raise ConceptError(f"there is no candidate to replace {erasure.concept!r}; name one or more others")
    contexts = list(erasure.contexts or ("",))
    random.Random(stream_seed(settings.seed, "neighbours")).shuffle(contexts)
    contexts = contexts[:_CONTEXTS]
    prompts = [NULL, *(erasure.prompt(name, context) for context in contexts for name in (erasure.concept, *names))]
    denoiser.check_prompts(prompts)
    table = denoiser.encode_prompts(prompts, settings.resolution)
    width = 1 + len(names)
    asked = [
        Query((*range(1 + i * width, 1 + (i + 1) * width), 0), driver=0, empty=width) for i in range(len(contexts))
    ]
    generator = stream(settings.seed, "neighbours")
    driven = sample_trajectories(
        denoiser, table, asked, settings.example_steps, settings.guidance, generator, settings.resolution
    )
    predictions = torch.cat([one.predictions for one in driven]).double()  # (contexts * steps, concept, names, empty)
    apart = (predictions - predictions[:, :1]).square().flatten(2).mean(dim=2).mean(dim=0)
    unit = float(apart[-1])
    distances = [float(value) / unit for value in apart[1:-1]]
    return sorted(map(Neighbour, names, distances), key=lambda one: (one.distance, one.name))
