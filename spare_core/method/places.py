"""Where in a prompt's embedding a concept stands: what an attacker moves, and an adversary in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser


def concept_places(denoiser: Denoiser, prompts: Sequence[str], concept: str) -> list[list[int]]:
    """For each prompt the places of the tokens of ``concept`` in it, of its first mention.

    A tokenizer may cut the name otherwise within a text; then all places of the text, between its two ends, are moved.
    """
    (name,) = (ids[1:-1] for ids in denoiser.token_ids([concept]))
    return [_found(ids, name) for ids in denoiser.token_ids(prompts)]


def from_first(places: Sequence[int], count: int, length: int) -> range:
    """Where ``count`` vectors stand in a prompt of ``length`` places, as if the concept had so many tokens."""
    return range(places[0], min(length, places[0] + count))


def put_vectors(row: Tensor, places: Sequence[int], vectors: Tensor) -> None:
    """Write ``vectors`` ``(V, D)`` into the ``row`` ``(L, D)`` of a prompt: a single one at each of the concept's
    ``places``; several one after the other from the first place on, as if the concept had so many tokens."""
    where = list(places if len(vectors) == 1 else from_first(places, len(vectors), len(row)))
    row[where] = (vectors.expand(len(where), -1) if len(vectors) == 1 else vectors[: len(where)]).to(row)


def concept_length(table: Conditioning, places: Mapping[int, Sequence[int]]) -> float:
    """Root mean square of what stands at ``places`` of rows of a table of prompts: the unit of how far it is moved."""
    own = [table.prompt_embeds[row][list(some)] for row, some in places.items()]
    return float(torch.cat(own).float().square().mean().sqrt())


def unsaid(denoiser: Denoiser, texts: Sequence[str], count: int) -> list[str]:
    """``count`` words of one token each that none of ``texts`` has, not even within another word: they may stand for
    tokens that are given otherwise (:meth:`Denoiser.encode_as`)."""
    said = {token for ids in denoiser.token_ids(texts) for token in ids}
    some = denoiser.words()[: count + len(said)]
    free = [word for word, ids in zip(some, denoiser.token_ids(some), strict=True) if not said & {*ids[1:-1]}]
    return free[:count]


def _found(ids: list[int], name: list[int]) -> list[int]:
    for start in range(1, len(ids) - len(name)):
        if ids[start : start + len(name)] == name:
            return list(range(start, start + len(name)))
    return list(range(1, max(2, len(ids) - 1)))
