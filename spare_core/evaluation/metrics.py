"""UnlearnCanvas's figures (arXiv 2402.11846) and FID (arXiv 1706.08500), from what a judge said of each picture.

A picture is *erased* if its prompt names an erased concept, else *kept*.

====== ================================================================================= =============================
figure definition                                                                        pictures
====== ================================================================================= =============================
UA     1 - accuracy on the erased concept; of several, the mean                          erased
IRA    mean over the other concepts of the same domain of their accuracy                 kept
CRA    mean over the concepts of the other domain of their accuracy                      kept
CRA_e  the same: does the rest of an erased picture survive                              erased
FID    ||mu1 - mu2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of a judge's features             kept; real ones without the
                                                                                         erased concept
====== ================================================================================= =============================

UnlearnCanvas's own CRA also counts erased pictures: (n_kept CRA + n_erased CRA_e) / n on a full grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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


class Verdicts(NamedTuple):
    """What was asked of N pictures and what a judge saw in them."""

    objects: Column
    styles: Column

    def column(self, kind: Domain) -> Column:
        """One domain."""
        return self.styles if kind == "style" else self.objects


def confusion(column: Column, concepts: int) -> list[list[int]]:
    """Counts ``(concepts + 1, concepts + 1)``: row, what was prompted; column, what the judge named; last, none of the
    suite's."""
    size = concepts + 1
    named = torch.where(column.predicted < 0, concepts, column.predicted)
    counts = torch.bincount(column.prompted * size + named, minlength=size * size)
    return counts.reshape(size, size).tolist()


class Figure(NamedTuple):
    """A figure, its 95 % interval, and its denominators."""

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


class ConceptScore(NamedTuple):
    """Of one concept: the judge's accuracy on its pictures and the mean probability it gives."""

    kind: Domain
    concept: int
    erased: bool
    pictures: int
    accuracy: float
    probability: float


def other(kind: Domain) -> Domain:
    """The domain that ``kind`` is not."""
    return "object" if kind == "style" else "style"


def names_erased(verdicts: Verdicts, erased: Sequence[int], kind: Domain) -> Tensor:
    """Whether each prompt names an erased concept, ``(N,)``."""
    return torch.isin(verdicts.column(kind).prompted, torch.tensor(erased))


def check_drawn(prompted: Tensor, erased: Sequence[int], kind: Domain) -> None:
    """Refuse a grid that UA or IRA cannot be computed on; ``prompted`` ``(N,)``: the concepts of the domain ``kind``.

    Raises:
        InputError: if no picture of an erased concept, or none of a kept one, is in it.
    """
    drawn, gone = set(prompted.tolist()), {*erased}
    if not gone <= drawn or not drawn - gone:
        raise InputError(
            f"of {len(drawn)} {kind}s in the grid, {len(gone & drawn)} are among the {len(gone)} erased; UA, IRA and "
            "CRA need every erased one and at least one other: draw more of the suite or erase fewer"
        )


def ua_ira_cra(verdicts: Verdicts, erased: Sequence[int], kind: Domain, seed: int = 0) -> Scores:
    """All four accuracies; ``erased`` are rows of the domain ``kind``.

    Raises:
        InputError: see :func:`check_drawn`.
    """
    own, across = verdicts.column(kind), verdicts.column(other(kind))
    check_drawn(own.prompted, erased, kind)
    gone = names_erased(verdicts, erased, kind)
    accuracy = mean_accuracy(own, gone)
    low, high = wilson_interval(1.0 - accuracy.value, accuracy.pictures)
    return Scores(
        ua=accuracy._replace(value=1.0 - accuracy.value, low=low, high=high),
        ira=mean_accuracy(own, ~gone, seed),
        cra=mean_accuracy(across, ~gone, seed),
        cra_erased=mean_accuracy(across, gone, seed),
    )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of ``count`` trials (Wilson 1927).

    (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    centre = share + Z**2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    # At 0 and 1 the interval ends there exactly; rounding must not leave the share outside.
    return max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))


def mean_accuracy(column: Column, among: Tensor, seed: int = 0) -> Figure:
    """Mean over concepts of the accuracy on those of their pictures that are ``among`` ``(N,)``.

    The interval is a percentile bootstrap over pictures; only how many hits and misses of each concept a resample holds
    matters, and these are multinomial. Where all are hits, or none is, resampling has nothing to vary: then it is
    Wilson's interval of the pictures.
    """
    hits, counts = _hits(column, among)
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


def concept_scores(verdicts: Verdicts, erased: Sequence[int], kind: Domain) -> Iterator[ConceptScore]:
    """Every concept drawn: an erased one on its own pictures, all others on kept pictures."""
    gone = names_erased(verdicts, erased, kind)
    for domain in DOMAINS:
        column = verdicts.column(domain)
        for concept in column.prompted.unique().tolist():
            is_erased = domain == kind and concept in erased
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
