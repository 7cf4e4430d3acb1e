"""The closed form: cross-attention that reads the concept as its surrogate, before any gradient step.

A key or value projection W ``(out, in)`` of cross-attention sees one token embedding at a time. Let x be an embedding
in a prompt of the concept, t the one at the same place of the surrogate's prompt, k one of the retained prompts. The
update D wanted of it minimises

    mean ||D x - W (t - x)||^2  +  ridge * (sum over kept concepts of mean ||D k||^2
                                            + prior_weight * mean over generic texts of ||D k||^2)  +  epsilon ||D||^2

The generic texts are the prior (:mod:`spare_core.method.prior`): without it D is free wherever nobody named anything.
Concepts add up on both sides, so that a kept one counts the same among seven and among a thousand. Every row of D is a
regression of its own, so over the rows R and the columns C of a mask the minimum is exact:

    D_RC = W_R S_C inv(G_CC),    S = mean (t - x) x',    G = mean x x' + ridge * sum k k' + epsilon I

where cutting the mask out of the minimum over the whole weight would destroy the model. Of D the adapter takes the r
directions in output space that carry most where G says the inputs lie: with U the leading eigenvectors of D G D' =
W_R K W_R', K = S_C inv(G_CC) S_C', it is B = U and A = U' D.

So keys are solved for. Values are solved for by the same regression over other vectors, what attention gathers with the
new keys (:mod:`spare_core.method.gather`); S of these also has what they are to make up for where nothing is to change.

G_CC = L L' and a thin root of K are the same for every layer with the same moments whose mask lets the same columns
move, and U are the left singular vectors of W_R root, a thin matrix too. So what costs a cube of D is done once a ridge
for all keys. A layer of values has moments of its own, and takes W_R S_C inv(L)' in place of W_R root.

Sources of the regression over whole weights: TIME (arXiv 2303.08084), UCE (2308.14761), MACE (2403.06135).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import NULL, PromptPlan, Purpose
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import Denoiser

_ELSEWHERE: Final = 64
"""Contexts of the vocabulary for an erased concept; in a list they are shared out, but for the fewest of each."""
_FEWEST_ELSEWHERE: Final = 8
_EPSILON: Final = 1e-3
"""Share of G's mean diagonal that is added to it."""
_NEGLIGIBLE: Final = 1e-10
"""Eigenvalues below this share of the largest are rounding."""


@dataclass(frozen=True)
class Moments:
    """Second moments of token embeddings of width D, each ``(D, D)`` and float64: ``concept`` mean x x', ``shift`` mean
    (t - x) x', ``retained`` mean k k', of several concepts the sums of those; ``returned``, the shift that brings what
    is kept back to where it was, None if nothing has moved it."""

    concept: Tensor
    shift: Tensor
    retained: Tensor
    returned: Tensor | None = None


class Encoder:
    """Token embeddings of texts, each of which is encoded once."""

    def __init__(self, denoiser: Denoiser, resolution: int = 0) -> None:
        self.denoiser, self.resolution = denoiser, resolution
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``(B, L, D)``, float32."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            found = self.denoiser.encode_prompts(new, self.resolution).prompt_embeds.float()
            self._known.update(zip(new, found, strict=True))
        return torch.stack([self._known[text] for text in texts])


def prompt_moments(
    encoder: Encoder, erasures: Erasures, prior: Tensor, settings: EraseSettings, purpose: Purpose
) -> Moments:
    """Moments over every prompt of a purpose; of an erased concept half of them over contexts that are any words of the
    vocabulary, since users write others than those that were given. The empty prompt is a kept concept; the prior
    counts as much as :func:`prior_weight` of them."""
    denoiser = encoder.denoiser
    plan = PromptPlan(erasures, settings.seed, purpose, denoiser.words())
    device = _device(denoiser)

    def embeddings(texts: Sequence[str]) -> Tensor:
        """``(B, L, D)``."""
        return encoder(texts).to(device, torch.double)

    def moment(texts: Sequence[str]) -> Tensor:
        k = embeddings(texts).flatten(0, 1)
        return k.T @ k / len(k)

    retained = prior_weight(erasures, settings) * prior.to(device) + moment([NULL])
    own = shift = torch.zeros_like(retained)
    elsewhere = elsewhere_count(erasures)
    for part in erasures:
        halves = [pairs for pairs in (plan.pairs(part), plan.pairs_elsewhere(part, elsewhere)) if pairs]
        for pairs in halves:
            concept, surrogate = ([plan.text(prompt) for prompt in side] for side in zip(*pairs, strict=True))
            x, t = embeddings(concept), embeddings(surrogate)
            places = aligned_places(denoiser.token_ids(concept), denoiser.token_ids(surrogate), x.shape[1]).to(device)
            x, t = x.flatten(0, 1), t.gather(1, places[..., None].expand_as(t)).flatten(0, 1)
            count = len(halves) * len(x)
            own, shift = own + x.T @ x / count, shift + (t - x).T @ x / count
    weight = kept_weight(erasures)
    for prompts in plan.kept():
        retained = retained + weight * moment([plan.text(prompt) for prompt in prompts])
    return Moments(own, shift, retained)


def scale(erasures: Erasures) -> float:
    """What a ridge for one name is to be multiplied by for these: the more are erased, the more each of what is kept
    has to hold out against."""
    return float(len(erasures.names) ** 0.5)


def kept_weight(erasures: Erasures) -> float:
    """What a concept counts that is kept by name: in a list less, whose ridge is larger than such a name needs."""
    return float(scale(erasures) ** -0.25)


def prior_weight(erasures: Erasures, settings: EraseSettings) -> float:
    """What generic texts count together, in kept concepts: more in a list, which has more of what nobody named to
    spare. Not as fast as the ridge, or too much of a hundred names is left (docs/failures.md)."""
    return float(settings.prior_weight * scale(erasures) ** 0.875)


def elsewhere_count(erasures: Erasures) -> int:
    """Contexts of the vocabulary for each erased concept."""
    return max(_FEWEST_ELSEWHERE, _ELSEWHERE // len(erasures))


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
def overwrite(adapter: Adapter, denoiser: Denoiser, moments: Mapping[str, Moments], ridge: float) -> None:
    """Put the minimum, cut to the adapter's rank, into those of the layers in ``moments`` that can hold it; into
    :func:`solvable` ones of a fresh ``adapter``."""
    layers = denoiser.text_layers()
    factors: dict[tuple[int, bytes], Factors] = {}
    shared = len({id(each) for each in moments.values()}) < len(moments)
    for name, update in solvable(adapter, denoiser).items():
        if name not in moments:
            continue
        rows, columns = (side.flatten().bool().cpu() for side in (update.rows, update.columns))
        key = id(moments[name]), columns.numpy().tobytes()
        if key not in factors:
            # Only the latest is kept: it is two or three matrices (D, D), and those of one kind follow each other.
            factors = {key: factorise(moments[name], ridge, columns, shared)}
        equations = factors[key]
        weight = layers[name].weight[rows].to(equations.lower)
        up = leading(equations.spread(weight), len(update.down))
        rank = up.shape[1]
        down = equations.solved(up.T @ weight)
        length = down.norm(dim=1)
        # A of unit rows, as it is drawn where nothing is solved: the optimiser's steps then mean the same everywhere.
        update.down[:rank, columns] = (down / length[:, None]).to(update.down)
        spread = torch.zeros(len(rows), rank).to(update.up)
        spread[rows] = (up * length / update.scale).to(update.up)
        update.up[:, :rank] = spread


def leading(matrix: Tensor, rank: int) -> Tensor:
    """At most ``rank`` left singular vectors of ``matrix`` ``(M, N)``, those of the largest values, ``(M, r)``; none of
    values that are rounding. By the eigenvectors of the smaller Gram matrix: CUDA's decomposition into singular values
    takes seconds where that of a symmetric matrix takes a tenth of one."""
    tall = len(matrix) > matrix.shape[1]
    values, directions = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    known = int((values > _NEGLIGIBLE * values[-1:].clamp(min=0)).sum())
    rank = min(rank, known)
    chosen = directions[:, len(values) - rank :]
    return matrix @ chosen / values[len(values) - rank :].sqrt() if tall else chosen


class Factors(NamedTuple):
    """The normal equations of the columns C that may move: ``lower`` ``(C, C)``, L with L L' = G_CC; ``shift``
    ``(D, C)``, S_C; where many layers have them in common also ``root`` ``(D, q)``, root root' = S_C inv(G_CC) S_C'."""

    lower: Tensor
    shift: Tensor
    root: Tensor | None

    def spread(self, weight: Tensor) -> Tensor:
        """M with M M' = D G D' for the D of ``weight`` ``(M, D)``, ``(M, q)``."""
        if self.root is not None:
            return weight @ self.root
        return torch.linalg.solve_triangular(self.lower, (weight @ self.shift).T, upper=False).T

    def solved(self, weights: Tensor) -> Tensor:
        """W S_C inv(G_CC) of a few ``weights`` W ``(r, D)``, ``(r, C)``."""
        return torch.cholesky_solve((weights @ self.shift).T, self.lower).T


def factorise(moments: Moments, ridge: float, columns: Tensor, shared: bool = True) -> Factors:
    """The normal equations of the input columns that ``columns`` ``(D,)`` lets move. A root is worth its price if it is
    ``shared`` by many layers: it has no more columns than are needed."""
    gram = (moments.concept + ridge * moments.retained)[columns][:, columns]
    gram += _EPSILON * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    shift = moments.shift if moments.returned is None else moments.shift + ridge * moments.returned
    shift = shift[:, columns]
    lower = torch.linalg.cholesky(gram)
    if not shared:
        return Factors(lower, shift, None)
    half = torch.linalg.solve_triangular(lower, shift.T, upper=False)  # (C, D): half' half = S_C inv(G_CC) S_C'
    values, directions = torch.linalg.eigh(half @ half.T)
    known = values > _NEGLIGIBLE * values[-1].clamp(min=0)
    return Factors(lower, shift, half.T @ directions[:, known])


def _device(denoiser: Denoiser) -> torch.device:
    """Where float64 is computed: CUDA has it, Apple's GPUs have not."""
    return denoiser.device if denoiser.device.type == "cuda" else torch.device("cpu")
