"""A closed-form start: cross-attention that reads the concept as its surrogate, before any gradient step.

A key or value projection W ``(out, in)`` of cross-attention sees one token embedding at a time. Let x be an embedding
in a prompt of the concept, t the one at the same place of the surrogate's prompt, k one of the retained prompts. The
update D wanted of it minimises

    mean ||D x - W (t - x)||^2  +  ridge * mean ||D k||^2  +  epsilon ||D||^2

Every row of D is a regression of its own. So over the rows R and the columns C of a mask the minimum is exact:

    D_RC = W_R S_C inv(G_CC),    S = mean (t - x) x',    G = mean x x' + ridge * mean k k' + epsilon I

where cutting the mask out of the minimum over the whole weight would destroy the model. Of D the adapter takes the r
directions in output space that carry most where G says the inputs lie: with U the leading eigenvectors of D G D' =
(W_R S_C) inv(G_CC) (W_R S_C)', it is B = U and A = U' D.

Sources of the regression over whole weights: TIME (arXiv 2303.08084), UCE (2308.14761), MACE (2403.06135).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import NULL, PromptPlan
from spare_core.method.residual import UNTOUCHED, Measurement, Meter
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import Denoiser

_RIDGES: Final = (10.0, 30.0, 100.0)
_DRIFT_WEIGHT: Final = 20.0
"""Drift is priced high here: training later halves the residual but does not reduce drift."""
_EPSILON: Final = 1e-3
"""Share of G's mean diagonal that is added to it."""
_NEGLIGIBLE: Final = 1e-10
"""Eigenvalues below this share of the largest are rounding."""
_CHUNK: Final = 64


@dataclass(frozen=True)
class Moments:
    """Second moments of token embeddings of width D, each ``(D, D)`` and float64: ``concept`` mean x x', ``shift`` mean
    (t - x) x', of several concepts the sums of those; ``retained`` mean k k'."""

    concept: Tensor
    shift: Tensor
    retained: Tensor


class Start(NamedTuple):
    """An adapter to go on from, the ridge it was solved with (None: it changes nothing yet), and what it measures."""

    adapter: Adapter
    ridge: float | None
    measured: Measurement


def best_start(fresh: Adapter, denoiser: Denoiser, erasures: Erasures, meter: Meter, settings: EraseSettings) -> Start:
    """The start that costs least by measurement: ``fresh`` itself, which changes nothing, or its solution for one of
    several ridges."""
    starts = [Start(fresh, None, UNTOUCHED)]
    if not solvable(fresh, denoiser):
        return starts[0]
    moments = prompt_moments(denoiser, erasures, settings)
    for ridge in _RIDGES:
        adapter = copy.deepcopy(fresh)
        overwrite(adapter, denoiser, moments, ridge)
        starts.append(Start(adapter, ridge, meter.measure(adapter)))
    return min(starts, key=lambda start: start.measured.cost(_DRIFT_WEIGHT))


def prompt_moments(denoiser: Denoiser, erasures: Erasures, settings: EraseSettings) -> Moments:
    """Moments over every prompt that may be trained on, every concept with the same weight. The empty prompt is a
    retained one; several concepts add up."""
    plan = PromptPlan(erasures, settings.seed, heldout=False)

    def embeddings(texts: Sequence[str]) -> Tensor:
        """``(B, L, D)``."""
        return denoiser.encode_prompts(texts, settings.resolution).prompt_embeds.to(_device(denoiser), torch.double)

    own = shift = torch.zeros(())
    for part in erasures:
        concept, surrogate = ([plan.text(prompt) for prompt in side] for side in zip(*plan.pairs(part), strict=True))
        x, t = embeddings(concept), embeddings(surrogate)
        places = aligned_places(denoiser.token_ids(concept), denoiser.token_ids(surrogate), x.shape[1]).to(x.device)
        x, t = x.flatten(0, 1), t.gather(1, places[..., None].expand_as(t)).flatten(0, 1)
        own, shift = own.to(x) + x.T @ x / len(x), shift.to(x) + (t - x).T @ x / len(x)
    kept = [NULL, *(plan.text(prompt) for prompts in plan.kept() for prompt in prompts)]
    total, count = torch.zeros_like(own), 0
    for start in range(0, len(kept), _CHUNK):
        k = embeddings(kept[start : start + _CHUNK]).flatten(0, 1)
        total, count = total + k.T @ k, count + len(k)
    return Moments(own, shift, total / count)


def aligned_places(ids: Sequence[Sequence[int]], others: Sequence[Sequence[int]], length: int) -> Tensor:
    """Where each token of a prompt is found in its other version, ``(B, length)``.

    What both begin and end with is found at its own place. Of what differs, the last token, which a causal encoder lets
    see all of a name, goes to the last; the others in order. Padding, after the end, moves with the end.
    """
    found = []
    for mine, other in zip(ids, others, strict=True):
        shorter = min(len(mine), len(other))
        begin = next((i for i in range(shorter) if mine[i] != other[i]), shorter)
        end = next((i for i in range(shorter - begin) if mine[-1 - i] != other[-1 - i]), shorter - begin)
        last, other_last = len(mine) - end - 1, len(other) - end - 1
        places = [i if i < begin or i < min(last, other_last) else max(begin, other_last) for i in range(last + 1)]
        places += [i + len(other) - len(mine) for i in range(last + 1, length)]
        found.append(places)
    return torch.tensor(found).clamp(max=length - 1)


def solvable(adapter: Adapter, denoiser: Denoiser) -> dict[str, LowRankUpdate]:
    """The updates that a solution goes into: of the layers that read the prompt, those that may move.

    Not under a mask of single weights: no product of two thin matrices minimises within it.
    """
    updates = {name: adapter.updates[name] for name in denoiser.text_layers()}
    return {
        name: update
        for name, update in updates.items()
        if isinstance(update, LowRankUpdate) and update.moves and update.entries is None
    }


@torch.no_grad()
def overwrite(adapter: Adapter, denoiser: Denoiser, moments: Moments, ridge: float) -> None:
    """Put the minimum, cut to the adapter's rank, into the layers of a fresh ``adapter`` that can hold it."""
    layers = denoiser.text_layers()
    for name, update in solvable(adapter, denoiser).items():
        rows, columns = (side.flatten().bool().cpu() for side in (update.rows, update.columns))
        weight = layers[name].weight[rows].to(moments.shift)
        gram = (moments.concept + ridge * moments.retained)[columns][:, columns]
        gram += _EPSILON * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        wanted = weight @ moments.shift[:, columns]
        change = torch.linalg.solve(gram, wanted.T).T
        values, directions = torch.linalg.eigh(wanted @ change.T)
        known = int((values > _NEGLIGIBLE * values[-1].clamp(min=0)).sum())
        rank = min(len(update.down), known)
        up = directions[:, len(values) - rank :]
        down = up.T @ change
        length = down.norm(dim=1)
        # A of unit rows, as it is drawn where nothing is solved: the optimiser's steps then mean the same everywhere.
        update.down[:rank, columns] = (down / length[:, None]).to(update.down)
        spread = torch.zeros(len(rows), rank).to(update.up)
        spread[rows] = (up * length / update.scale).to(update.up)
        update.up[:, :rank] = spread


def _device(denoiser: Denoiser) -> torch.device:
    """Where float64 is computed: CUDA has it, Apple's GPUs have not."""
    return denoiser.device if denoiser.device.type == "cuda" else torch.device("cpu")
