"""UnlearnCanvas's figures (arXiv 2402.11846) and FID (arXiv 1706.08500), from what a judge said of each picture.

A picture is *erased* if its prompt names an erased concept, else *kept*. Where concepts of both domains are erased,
each domain is "the same" to its own and "the other" to the other's: IRA and CRA are one figure then, the mean over all
kept concepts.

====== ================================================================================= =============================
figure definition                                                                        pictures
====== ================================================================================= =============================
UA     1 - accuracy on the erased concept; of several, the mean                          erased
IRA    mean over the other concepts of the same domain of their accuracy                 kept
IRA_u  the same over those that no request named, neither to keep nor as a surrogate      kept
CRA    mean over the concepts of the other domain of their accuracy                      kept
CRA_e  the same: does the rest of an erased picture survive                              erased; of two erased
                                                                                         concepts nothing is the rest
FID    ||mu1 - mu2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of a judge's features             kept; real ones without the
                                                                                         erased concept
====== ================================================================================= =============================

UnlearnCanvas's own CRA also counts erased pictures: (n_kept CRA + n_erased CRA_e) / n on a full grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spare_core.errors import InputError
from spare_core.evaluation.suite import DOMAINS, Domain

Z: Final = 1.959963984540054
"""The normal's 97.5 % quantile: all intervals are 95 %."""
RESAMPLES: Final = 2000
FID_RESAMPLES: Final = 50
_QUANTILES: Final = (0.025, 0.975)


class Column(NamedTuple):
    """One domain of a verdict table, ``(N,)`` each: the concept prompted for, the one the judge names (-1: none of the
    suite's), and the probability the judge gives to the prompted one."""

    prompted: Tensor
    predicted: Tensor
    probability: Tensor

    @property
    def hits(self) -> Tensor:
        """Whether the judge names the prompted concept, ``(N,)``."""
        return self.prompted == self.predicted


class Outcomes(NamedTuple):
    """What was asked of N pictures and what a judge saw in them."""

    objects: Column
    styles: Column

    def column(self, kind: Domain) -> Column:
        """One domain."""
        return self.styles if kind == "style" else self.objects

    @property
    def prompted(self) -> dict[Domain, Tensor]:
        """The concepts prompted for, ``(N,)`` of each domain."""
        return {kind: self.column(kind).prompted for kind in DOMAINS}


def confusion(columns: Sequence[tuple[Column, int]]) -> list[list[int]]:
    """Counts ``(C + 1, C + 1)`` over C concepts, of each column so many: row, what was prompted; column, what the judge
    named; last, none of the suite's."""
    total = sum(concepts for _, concepts in columns)
    counts, first = torch.zeros((total + 1) ** 2, dtype=torch.long), 0
    for column, concepts in columns:
        named = torch.where(column.predicted < 0, total, first + column.predicted)
        counts += torch.bincount((first + column.prompted) * (total + 1) + named, minlength=len(counts))
        first += concepts
    return counts.reshape(total + 1, total + 1).tolist()


Erased = Mapping[Domain, Sequence[int]]
"""Rows of the erased concepts, of one domain or both."""


class Figure(NamedTuple):
    """A figure, its 95 % interval, and its denominators; ``pictures`` counts one twice where both of its concepts
    enter."""

    value: float
    low: float
    high: float
    pictures: int
    concepts: int


class Distance(NamedTuple):
    """FID, its 95 % interval, and how many pictures were drawn and how many were real."""

    value: float
    low: float
    high: float
    pictures: int
    reference: int


class Scores(NamedTuple):
    """Fractions, not percent."""

    ua: Figure
    ira: Figure
    cra: Figure
    cra_erased: Figure
    ira_unnamed: Figure | None
    """None where every concept of the domain is named."""


class ConceptScore(NamedTuple):
    """The score of one concept: the judge's accuracy on its pictures and the mean probability it gives."""

    kind: Domain
    concept: int
    erased: bool
    pictures: int
    accuracy: float
    probability: float


def other(kind: Domain) -> Domain:
    """The domain that ``kind`` is not."""
    return "object" if kind == "style" else "style"


def names_erased(prompted: Mapping[Domain, Tensor], erased: Erased) -> Tensor:
    """Whether each prompt names an erased concept, ``(N,)``; ``prompted`` ``(N,)`` by domain."""
    return torch.stack([_among(prompted[kind], rows) for kind, rows in erased.items()]).any(dim=0)


def check_drawn(prompted: Mapping[Domain, Tensor], erased: Erased) -> None:
    """Refuse a grid that UA or IRA cannot be computed on; ``prompted`` ``(N,)`` by domain.

    Raises:
        InputError: if no picture of an erased concept, or none without any, is in it.
    """
    for kind, rows in erased.items():
        drawn, gone = set(prompted[kind].tolist()), {*rows}
        if not gone <= drawn or not drawn - gone:
            raise InputError(
                f"of {len(drawn)} {kind}s in the grid, {len(gone & drawn)} are among the {len(gone)} erased; UA, IRA "
                "and CRA need every erased one and at least one other: draw more of the suite or erase fewer"
            )
    if names_erased(prompted, erased).all():
        raise InputError("every picture in the grid names an erased concept; draw more of the suite or erase fewer")


def ua_ira_cra(verdicts: Outcomes, erased: Erased, seed: int = 0, known: Erased | None = None) -> Scores:
    """All accuracies; ``known`` are rows of the concepts that the requests name.

    Raises:
        InputError: see :func:`check_drawn`.
    """
    prompted = verdicts.prompted
    check_drawn(prompted, erased)
    named = {kind: _among(prompted[kind], erased.get(kind, ())) for kind in DOMAINS}
    gone = named["style"] | named["object"]

    def mean(kinds: Sequence[Domain], among: Mapping[Domain, Tensor], seed: int = 0) -> Figure:
        return mean_accuracy([(verdicts.column(kind), among[kind]) for kind in kinds], seed)

    own = [kind for kind in DOMAINS if kind in erased]
    across = [kind for kind in DOMAINS if other(kind) in erased]
    accuracy = mean(own, named)
    low, high = wilson_interval(1.0 - accuracy.value, accuracy.pictures)
    kept = dict.fromkeys(DOMAINS, ~gone)
    unnamed = {kind: ~gone & ~_among(prompted[kind], (known or {}).get(kind, ())) for kind in DOMAINS}
    some = known is not None and any(unnamed[kind].any() for kind in own)
    return Scores(
        ua=accuracy._replace(value=1.0 - accuracy.value, low=low, high=high),
        ira=mean(own, kept, seed),
        cra=mean(across, kept, seed),
        cra_erased=mean(across, {kind: named[other(kind)] & ~named[kind] for kind in DOMAINS}, seed),
        ira_unnamed=mean(own, unnamed, seed) if some else None,
    )


def _among(prompted: Tensor, rows: Sequence[int]) -> Tensor:
    return torch.isin(prompted, torch.tensor(rows, dtype=prompted.dtype))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of ``count`` trials (Wilson 1927).

    (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    centre = share + Z**2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    # At 0 and 1 the interval ends there exactly; rounding must not leave the share outside.
    return max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))


def mean_accuracy(parts: Sequence[tuple[Column, Tensor]], seed: int = 0) -> Figure:
    """Mean over the concepts of each column of the accuracy on those of their pictures that its mask ``(N,)`` has.

    The interval is a percentile bootstrap over pictures; only how many hits and misses of each concept a resample holds
    matters, and these are multinomial. Where all are hits, or none is, resampling has nothing to vary: then it is
    Wilson's interval of the pictures.
    """
    hits, counts = map(np.concatenate, zip(*(_hits(*part) for part in parts), strict=True))
    accuracy, total = float((hits / counts).mean()), int(counts.sum())
    if hits.sum() in (0, total):
        return Figure(accuracy, *wilson_interval(accuracy, total), total, len(counts))
    outcomes = np.concatenate([hits, counts - hits]) / total
    drawn = np.random.default_rng(seed).multinomial(total, outcomes, RESAMPLES).reshape(RESAMPLES, 2, len(counts))
    seen = drawn.sum(axis=1)
    # A concept that a resample holds no picture of has no accuracy there, and does not enter its mean.
    shares = np.divide(drawn[:, 0], seen, out=np.zeros(seen.shape), where=seen > 0)
    low, high = np.quantile(shares.sum(axis=1) / (seen > 0).sum(axis=1), _QUANTILES)
    return Figure(accuracy, float(low), float(high), total, len(counts))


def _hits(column: Column, among: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Hits and pictures of each concept that has pictures among them."""
    prompted = column.prompted[among].numpy()
    counts = np.bincount(prompted)
    hits = np.bincount(prompted, weights=column.hits[among].numpy(), minlength=len(counts))
    return hits[counts > 0], counts[counts > 0]


def concept_scores(verdicts: Outcomes, erased: Erased) -> Iterator[ConceptScore]:
    """Every concept drawn: an erased one on its own pictures, all others on kept pictures."""
    gone = names_erased(verdicts.prompted, erased)
    for domain in DOMAINS:
        column = verdicts.column(domain)
        for concept in column.prompted.unique().tolist():
            is_erased = concept in erased.get(domain, ())
            rows = (column.prompted == concept) & (gone if is_erased else ~gone)
            count = int(rows.sum())
            if count:
                accuracy = float(column.hits[rows].double().mean())
                probability = float(column.probability[rows].double().mean())
                yield ConceptScore(domain, concept, is_erased, count, accuracy, probability)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """||mu1 - mu2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); means ``(D,)``, covariances ``(D, D)``, float64."""
    return _distance_to(mean1, cov1)(mean2, cov2)


def fid(features: Tensor, reference: Tensor, seed: int = 0) -> Distance:
    """Frechet distance of features ``(N, D)`` to those of real pictures ``(M, D)``.

    The interval is that of a percentile bootstrap over the N pictures, moved by the mean excess of the resamples: they
    repeat pictures, which alone raises the distance.

    Raises:
        InputError: if there are fewer than two pictures on a side.
    """
    if min(len(features), len(reference)) < 2:
        raise InputError(
            f"FID needs at least two pictures a side, got {len(features)} drawn and {len(reference)} real ones"
        )
    features = features.double()
    distance = _distance_to(*_moments(reference.double()))
    value = distance(*_moments(features))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(features), np.full(len(features), 1 / len(features)), FID_RESAMPLES)
    resampled = np.array([distance(*_moments(features, torch.from_numpy(row).double())) for row in counts])
    low, high = np.quantile(resampled - resampled.mean() + value, _QUANTILES)
    return Distance(value, max(0.0, min(float(low), value)), max(float(high), value), len(features), len(reference))


def _moments(features: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and unbiased covariance ``(D, D)`` of rows that each occur ``counts`` times."""
    weights = torch.ones(len(features), dtype=features.dtype) if counts is None else counts
    total = weights.sum()
    mean = weights @ features / total
    centred = (features - mean) * weights.sqrt()[:, None]
    return mean, centred.T @ centred / (total - 1)


def _distance_to(mean1: Tensor, cov1: Tensor) -> Callable[[Tensor, Tensor], float]:
    """The distance to one fixed Gaussian, whose covariance is taken the root of once.

    (S1 S2)^(1/2) has the eigenvalues of (S1^(1/2) S2 S1^(1/2))^(1/2), and that product is symmetric.
    """
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def distance(mean2: Tensor, cov2: Tensor) -> float:
        product = root @ cov2 @ root
        shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
        squared = (mean1 - mean2).pow(2).sum() + cov1.trace() + cov2.trace() - 2 * shared
        return max(0.0, float(squared))  # rounding can leave a hair below zero

    return distance
