"""The prior: where the texts of a model lie that nobody named, so that an erasure leaves them alone.

The closed form holds D k near zero for the tokens k of what is kept by name, and is free everywhere else. What else
there is says the second moment of some thousands of texts, P = mean k k', which takes the text encoder only. Half of it
are generic texts, the same for every erasure of a base model but for those that mention what is erased, which are taken
out. The other half are the templates of the erasure itself, filled with words of the vocabulary: what lies nearest to
the concept, and the first to be harmed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from spare_core.concepts.erasures import Erasures
from spare_core.concepts.generic import generic_texts
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream_seed

_CHUNK: Final = 64
_OWN: Final = 4
"""A request's own templates are filled a quarter as often as the generic ones: they are encoded each time."""


@dataclass(frozen=True)
class Prior:
    """``total`` ``(D, D)``, float64: the sum of k k' over all ``tokens`` of the ``texts``."""

    texts: tuple[str, ...]
    total: Tensor
    tokens: int


def prior_texts(denoiser: Denoiser, count: int) -> tuple[str, ...]:
    """The texts of a model's prior; the same for every erasure and seed."""
    words = denoiser.words()
    return tuple(generic_texts(words, count, random.Random(stream_seed(0, "prior")))) if words else ()


def build_prior(denoiser: Denoiser, count: int, resolution: int = 0) -> Prior:
    """Encode ``count`` generic texts."""
    texts = prior_texts(denoiser, count)
    return Prior(texts, *second_moment(denoiser, texts, resolution))


def second_moment(denoiser: Denoiser, texts: tuple[str, ...], resolution: int) -> tuple[Tensor, int]:
    """Sum of k k' over every token of ``texts``, ``(D, D)`` on the CPU, and how many tokens that were."""
    width = next(iter(denoiser.text_layers().values())).in_features
    total, count = torch.zeros(width, width, dtype=torch.double), 0
    for start in range(0, len(texts), _CHUNK):
        found = denoiser.encode_prompts(texts[start : start + _CHUNK], resolution).prompt_embeds
        # float64 on the device that has it: Apple's GPUs have not.
        tokens = (found if found.device.type == "cuda" else found.cpu()).double().flatten(0, 1)
        total, count = total + (tokens.T @ tokens).cpu(), count + len(tokens)
    return total, count


def prior_moment(prior: Prior, denoiser: Denoiser, erasures: Erasures, resolution: int = 0) -> Tensor:
    """Mean of k k' over texts that mention nothing which is erased nor parts of it, ``(D, D)``: half of it those of the
    prior, half of the erasures' own templates; zero if there are none."""
    own_words = {*denoiser.words()} - {*erasures.other_words(denoiser.words())}
    gone = tuple(text for text in prior.texts if erasures.mentioned(text) is not None or own_words & {*text.split()})
    total, tokens = second_moment(denoiser, gone, resolution)
    own, own_tokens = second_moment(denoiser, own_texts(denoiser, erasures, len(prior.texts) // _OWN), resolution)
    halves = [(prior.total - total, prior.tokens - tokens), (own, own_tokens)]
    means = [part / count for part, count in halves if count]
    return sum(means, torch.zeros_like(prior.total)) / max(1, len(means))


def own_texts(denoiser: Denoiser, erasures: Erasures, count: int) -> tuple[str, ...]:
    """About ``count`` texts of the erasures' templates about anything else; the same under every seed."""
    words = erasures.other_words(denoiser.words())
    if not words:
        return ()
    templates = [frame.template for frame in erasures.frames]
    texts = generic_texts(words, count, random.Random(stream_seed(0, "own prior")), templates)
    return tuple(text for text in texts if erasures.mentioned(text) is None)
