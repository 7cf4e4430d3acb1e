"""What cross-attention gathers of a prompt: the moments that its layers of values are solved with.

A query q of cross-attention makes one vector of a prompt's L tokens x_j, and passes on its value:

    x(q) = sum_j a_j x_j,    a = softmax_j(q' W_k x_j * scale),    W_v x(q)

So the change D of W_v has to be right for what is gathered, not for every token. With x gathered from the concept's
prompt by the keys as they are after the erasure, t from the surrogate's prompt and k from a kept one by the frozen
keys, and k~ from a kept one by the new keys, it minimises

    mean ||D x - W_v (t - x)||^2  +  ridge * (sum over kept concepts of mean ||D k~ - W_v (k - k~)||^2 + ...)

(of several concepts each in units of its mean ||t - x||^2, so that as much is left of each), which is the regression of
:mod:`spare_core.method.solve` with other vectors. Tokens that say the same at several places count once, those that
nothing looks at not at all, and what the new keys shift is made up for. So a hundred names fit into a width of 256,
where token by token they do not (docs/failures.md).

The queries are the frozen model's own, on the states of kept trajectories in the bank: the surrogate's are what an
erased model passes through.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import NULL, PromptPlan, Purpose
from spare_core.method.bank import Bank
from spare_core.method.settings import EraseSettings
from spare_core.method.solve import Encoder, Moments, elsewhere_count, kept_weight, prior_weight
from spare_core.method.trajectories import calls
from spare_core.models.denoiser import Denoiser, TextAttention
from spare_core.streams import stream

_QUERIES: Final = 4
"""Places of a picture whose queries are taken, in each layer and state."""
_STATES: Final = 4
"""States of each of the bank's kept trajectories, evenly spread."""
_CONTEXTS: Final = 18
"""Most contexts of a concept that are gathered from, of the given ones and of those of the vocabulary each."""
_MOST_ALIKE: Final = 4.0
"""A concept counts at most so many times what one at the mean distance from its surrogate counts: a name that means the
same to the model as its surrogate must not count without bounds."""
_TEXTS: Final = 8
"""Generic texts that each state's queries are put to."""


class Queries(NamedTuple):
    """Queries of one layer: ``own`` ``(M, Q, E)`` on M states under the prompt that drives each, ``empty`` under the
    empty one."""

    own: Tensor
    empty: Tensor


class Asked(NamedTuple):
    """Queries by the name of the layer of values they are for, and the M names that the states' own prompts name."""

    layers: dict[str, Queries]
    names: list[str]


class Texts(NamedTuple):
    """Token embeddings ``(N, L, D)``: of each erased concept its surrogate and ``pairs`` of its prompts and the
    surrogate's, one or two that count the same; of each kept one, which counts ``kept_weight``, its name and prompts;
    of generic texts, which count ``generic_weight`` together; of the empty prompt."""

    pairs: list[tuple[str, list[tuple[Tensor, Tensor]]]]
    kept: list[tuple[str, Tensor]]
    kept_weight: float
    generic: Tensor
    generic_weight: float
    empty: Tensor


@torch.no_grad()
def ask(denoiser: Denoiser, bank: Bank, seed: int) -> Asked:
    """The frozen model's queries on kept states of ``bank``."""
    states = len(bank.retain.timesteps) // len(bank.retain.latents)
    side = bank.retain.take(torch.arange(0, len(bank.retain.timesteps), max(1, states // _STATES)))
    attentions = denoiser.text_attentions()
    own = _queries(denoiser, bank, side.noisy, side.timesteps, side.student, attentions, seed)
    empty = torch.full_like(side.student, bank.null_row)
    under_empty = _queries(denoiser, bank, side.noisy, side.timesteps, empty, attentions, seed)
    names = [bank.names[row] for row in side.student.tolist()]
    return Asked({name: Queries(own[name], under_empty[name]) for name in own}, names)


def _queries(
    denoiser: Denoiser,
    bank: Bank,
    noisy: Tensor,
    timesteps: Tensor,
    rows: Tensor,
    attentions: Sequence[TextAttention],
    seed: int,
) -> dict[str, Tensor]:
    """``(M, Q, E)`` by layer of values: at chance places of each state."""
    generator = stream(seed, "queries")
    found: dict[str, list[Tensor]] = {one.value: [] for one in attentions}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: Tensor) -> None:
            places = torch.rand(output.shape[:2], generator=generator).argsort(dim=1)[:, :_QUERIES]
            places = places.to(output.device, non_blocking=True)
            taken = output.gather(1, places[..., None].expand(-1, -1, output.shape[2]))
            found[name].append(taken.float())

        return hook

    handles = [one.query.register_forward_hook(keep(one.value)) for one in attentions]
    try:
        for some in calls(len(noisy), denoiser.rows_at_once(noisy.shape[-1])):
            batch = noisy[some].to(denoiser.device), timesteps[some].to(denoiser.device)
            denoiser.predict(*batch, bank.table[rows[some]])
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.no_grad()
def encode_texts(encoder: Encoder, erasures: Erasures, settings: EraseSettings, purpose: Purpose, states: int) -> Texts:
    """The prompts of a purpose: of erased concepts half in given contexts and half in those of the vocabulary, as
    :func:`spare_core.method.solve.prompt_moments` has them, but no more than 18 of each. Generic texts are the same for
    every purpose, as many as so many ``states`` are asked about."""
    words = encoder.denoiser.words()
    plan, training = (PromptPlan(erasures, settings.seed, one, words) for one in (purpose, "train"))

    def some(things: Sequence[Any], name: str) -> list[Any]:
        return random.Random(name).sample(things, min(_CONTEXTS, len(things)))

    pairs = []
    for part in erasures:
        halves = []
        for both in (plan.pairs(part), plan.pairs_elsewhere(part, elsewhere_count(erasures))):
            if both:
                sides = zip(*some(both, part.concept), strict=True)
                concept, surrogate = (encoder([plan.text(prompt) for prompt in side]) for side in sides)
                halves.append((concept, surrogate))
        pairs.append((erasures.surrogate(part.concept), halves))
    kept = [
        (prompts[0].name, encoder([plan.text(prompt) for prompt in some(prompts, prompts[0].name)]))
        for prompts in plan.kept()
    ]
    empty = encoder([NULL])
    texts = training.generic(min(_TEXTS * states, settings.prior_texts)) if settings.prior_weight else []
    generic = encoder([training.text(text) for text in texts]) if texts else empty[:0]
    return Texts(pairs, kept, kept_weight(erasures), generic, prior_weight(erasures, settings), empty)


@torch.no_grad()
def gathered_moments(denoiser: Denoiser, asked: Asked, texts: Texts, adapter: Adapter) -> dict[str, Moments]:
    """Moments of what each cross-attention gathers, by the name of its layer of values, with the keys that ``adapter``
    makes; over all heads."""
    return {
        one.value: _of_layer(one, asked.layers[one.value], asked.names, texts, denoiser, adapter)
        for one in denoiser.text_attentions()
    }


def _of_layer(
    one: TextAttention,
    queries: Queries,
    names: Sequence[str],
    texts: Texts,
    denoiser: Denoiser,
    adapter: Adapter,
) -> Moments:
    keys = denoiser.text_layers()[one.key]
    update = adapter.updates[one.key]
    width = texts.empty.shape[-1]
    rest = torch.arange(len(names))
    states: dict[str, list[int]] = {}
    for state, name in enumerate(names):
        states.setdefault(name, []).append(state)

    def keys_of(tokens: Tensor) -> Tensor:
        """The frozen ones."""
        return keys(tokens.to(keys.weight.dtype)).float()

    def moments(weight: float, asking: Tensor, prompts: Tensor, others: Tensor) -> tuple[Tensor, Tensor, float]:
        """Of ``prompts`` and their other version, weighed, mean x x' and mean (t - x) x'; and how far apart the frozen
        keys have the two in the mean, ||t - x||^2, which is asked only where names are to be weighed."""
        before = keys_of(prompts)
        t = gather(one, asking, others, before if others is prompts else keys_of(others))
        x = gather(one, asking, prompts, before + update(prompts).float())
        apart = 0.0
        if several and others is not prompts:
            apart = float((gather(one, asking, prompts, before) - t).square().sum(dim=1).mean())
        return weight / len(x) * (x.T @ x), weight / len(x) * ((t - x).T @ x), apart

    def of(name: str) -> Tensor:
        """Queries on the states that ``name`` drives; on all, where none is in the bank."""
        return queries.own[states.get(name, rest)]

    def none() -> Tensor:
        return torch.zeros(width, width, dtype=_wide(texts.empty), device=texts.empty.device)

    # Of a single concept there is nothing to weigh, and a gap costs half as much as its moments.
    several = len(texts.pairs) > 1
    found = []
    for name, halves in texts.pairs:
        square, shift, gaps = none(), none(), []
        for concept, surrogate in halves:
            some = moments(1.0 / len(halves), of(name), concept, surrogate)
            square, shift = square + some[0], shift + some[1]
            gaps.append(some[2])
        found.append((square, shift, sum(gaps) / len(gaps)))
    counts = alike_weights([gap for _, _, gap in found]) if several else [1.0]
    own = sum((count * square for count, (square, _, _) in zip(counts, found, strict=True)), none())
    overwritten = sum((count * shift for count, (_, shift, _) in zip(counts, found, strict=True)), none())
    kept = [(texts.kept_weight, of(name), prompts) for name, prompts in texts.kept]
    kept.append((1.0, queries.empty, texts.empty))
    if len(texts.generic):
        turns = torch.arange(_TEXTS * len(names)) % len(texts.generic)
        kept += [
            (texts.generic_weight / len(names), queries.own[[state]], texts.generic[turn])
            for state, turn in enumerate(turns.split(_TEXTS))
        ]
    retained, returned = none(), none()
    for weight, asking, prompts in kept:
        square, shift, _ = moments(weight, asking, prompts, prompts)
        retained, returned = retained + square, returned + shift
    return Moments(own, overwritten, retained, returned)


def alike_weights(gaps: Sequence[float]) -> list[float]:
    """What each of several concepts counts, 1 in the mean, for as much to be left of one as of another, as shares of
    their ``gaps``: a concept that lies near its surrogate would else be hardly overwritten, beside others."""
    mean = sum(gaps) / len(gaps)
    weights = [min(max(mean / gap, 1 / _MOST_ALIKE), _MOST_ALIKE) if gap else 1.0 for gap in gaps]
    return [weight * len(weights) / sum(weights) for weight in weights]


def gather(one: TextAttention, queries: Tensor, prompts: Tensor, keys: Tensor) -> Tensor:
    """What ``queries`` ``(M, Q, E)`` gather from each of ``prompts`` ``(N, L, D)`` with their ``keys`` ``(N, L, E)``,
    in every head: ``(heads * M * Q * N, D)``."""
    asking = queries.flatten(0, 1).unflatten(1, (one.heads, -1))
    answering = keys.unflatten(2, (one.heads, -1))
    attention = (torch.einsum("qhe,nlhe->hqnl", asking, answering) * one.scale).softmax(dim=-1)
    return torch.einsum("hqnl,nld->hqnd", attention, prompts).flatten(0, 2)


def _wide(tensor: Tensor) -> torch.dtype:
    """What sums are kept in: Apple's GPUs have no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.double
