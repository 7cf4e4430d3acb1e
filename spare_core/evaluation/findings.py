"""From the grids before and after to the figures of a report; no model, no files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spare_core.concepts.names import same_concept
from spare_core.evaluation.damage import compare
from spare_core.evaluation.grid import GridResult
from spare_core.evaluation.judgement import Reference
from spare_core.evaluation.metrics import (
    ConceptScore,
    Distance,
    Figure,
    concept_scores,
    confusion,
    fid,
    names_erased,
    ua_ira_cra,
    wilson_interval,
)
from spare_core.evaluation.suite import DOMAINS, Domain, Suite


@dataclass(frozen=True)
class Question:
    """What an evaluation asks: of which suite, which concepts are said to be gone; ``erased`` are rows of one domain,
    or of each.

    ``kept`` and ``surrogates`` are the names that the adapters' own requests give. ``aside`` are further concepts, by
    domain, that the adapters erase and that are not asked about: a picture whose prompt names one is neither to show it
    nor to be as before, and is left out of every figure.
    """

    suite: Suite
    erased: Mapping[Domain, tuple[int, ...]]
    kept: tuple[str, ...] = ()
    surrogates: tuple[str, ...] = ()
    aside: Mapping[Domain, tuple[int, ...]] = field(default_factory=dict)
    becomes: Mapping[tuple[Domain, int], int] = field(default_factory=dict)
    """Of an erased concept the row of its surrogate, where the suite has that in the same domain."""

    def asked(self, grid: GridResult) -> GridResult:
        """The pictures that the figures are of."""
        return grid.take(~names_erased(grid.outcomes.prompted, self.aside)) if self.aside else grid

    @property
    def kinds(self) -> tuple[Domain, ...]:
        """The domains that something is erased from."""
        return tuple(kind for kind in DOMAINS if kind in self.erased)

    @property
    def erased_names(self) -> tuple[str, ...]:
        """The erased concepts as the suite writes them."""
        return tuple(self.suite.names(kind)[row] for kind in self.kinds for row in self.erased[kind])

    @property
    def known(self) -> dict[Domain, list[int]] | None:
        """Rows of the concepts that the requests name to keep or as surrogates; None if nothing is known of them."""
        names = (*self.kept, *self.surrogates)
        if not names:
            return None
        return {
            kind: [row for row, name in enumerate(self.suite.names(kind)) if _among(name, names)] for kind in DOMAINS
        }

    def surrogate_rows(self, kind: Domain) -> list[int]:
        """Surrogates that are in a domain of the suite."""
        return [row for row, name in enumerate(self.suite.names(kind)) if _among(name, self.surrogates)]


def findings(
    before: GridResult, after: GridResult | None, question: Question, reference: Reference | None
) -> dict[str, Any]:
    """``counts``, ``base``, ``adapted``, ``per_concept``, ``confusion``, ``worst_neighbour`` and ``damage`` of a
    report."""
    gone = names_erased(before.outcomes.prompted, question.erased)
    real = None if reference is None else _kept_features(reference, question)
    scores = _scores(before, question, gone, real)
    concepts = per_concept(before, after, question)
    return {
        "counts": {"pictures": len(before), "erased_pictures": int(gone.sum()), "kept_pictures": int((~gone).sum())}
        | {name: _denominators(score) for name, score in scores.items()},
        "base": _figures(scores),
        "adapted": None if after is None else _figures(_scores(after, question, gone, real)),
        "per_concept": concepts,
        "confusion": _confusion(before, after, question),
        "worst_neighbour": None if after is None else next(iter(by_harm(concepts, question.kinds)), None),
        "damage": None if after is None else compare(before.pictures, after.pictures, gone),
    }


def _kept_features(reference: Reference, question: Question) -> Tensor:
    """Features of the real pictures that show no erased concept."""
    shown: dict[Domain, Tensor] = {"style": reference.styles, "object": reference.objects}
    gone = {kind: (*question.erased.get(kind, ()), *question.aside.get(kind, ())) for kind in DOMAINS}
    return reference.features[~names_erased(shown, gone)]


def _scores(grid: GridResult, question: Question, gone: Tensor, real: Tensor | None) -> dict[str, Figure | Distance]:
    found = ua_ira_cra(grid.outcomes, question.erased, known=question.known)._asdict()
    scores: dict[str, Figure | Distance] = {name: score for name, score in found.items() if score is not None}
    return scores if real is None else {**scores, "fid": fid(grid.features[~gone], real)}


def _figures(scores: Mapping[str, Figure | Distance]) -> dict[str, Any]:
    values = {name: score.value for name, score in scores.items()}
    intervals = {name: [score.low, score.high] for name, score in scores.items()}
    return {"fid": None, "ira_unnamed": None, **values, "intervals": intervals}


def _denominators(score: Figure | Distance) -> dict[str, int]:
    return {name: value for name, value in score._asdict().items() if name not in ("value", "low", "high")}


def per_concept(before: GridResult, after: GridResult | None, question: Question) -> list[dict[str, Any]]:
    """Every concept of both domains with accuracy and mean probability, before and after."""
    first = concept_scores(before.outcomes, question.erased)
    second = [] if after is None else list(concept_scores(after.outcomes, question.erased))
    grids = [grid for grid in (before, after) if grid is not None]
    rows = []
    for i, score in enumerate(first):
        name = question.suite.names(score.kind)[score.concept]
        same_domain = score.kind in question.erased
        rows.append({
            "concept": name,
            "kind": score.kind,
            "erased": score.erased,
            "kept": same_domain and _among(name, question.kept),
            "surrogate": same_domain and _among(name, question.surrogates),
            "pictures": score.pictures,
            "before": _accuracy(score),
            "after": _accuracy(second[i]) if second else None,
            "becomes": _becomes(grids, question, score),
        })  # fmt: skip
    return rows


def _becomes(grids: Sequence[GridResult], question: Question, score: ConceptScore) -> dict[str, Any] | None:
    """The surrogate of an erased concept, and in which share of its pictures the judge names that, before and after."""
    surrogate = question.becomes.get((score.kind, score.concept))
    if surrogate is None or not score.erased:
        return None
    columns = [grid.outcomes.column(score.kind) for grid in grids]
    shares = [float((one.predicted[one.prompted == score.concept] == surrogate).double().mean()) for one in columns]
    name = question.suite.names(score.kind)[surrogate]
    return {"surrogate": name, "before": shares[0], "after": shares[1] if len(shares) > 1 else None}


def _confusion(before: GridResult, after: GridResult | None, question: Question) -> dict[str, Any]:
    """In the domains of the erased concepts: what was prompted (rows) against what the judge named (columns)."""
    names = {kind: question.suite.names(kind) for kind in question.kinds}
    labels = [name for kind in question.kinds for name in names[kind]]
    sides = [
        None if grid is None else confusion([(grid.outcomes.column(kind), len(names[kind])) for kind in question.kinds])
        for grid in (before, after)
    ]
    return {"labels": [*labels, "(none of these)"], "base": sides[0], "adapted": sides[1]}


def _among(name: str, names: Sequence[str]) -> bool:
    return any(same_concept(name, other) for other in names)


def _accuracy(score: ConceptScore) -> dict[str, Any]:
    interval = list(wilson_interval(score.accuracy, score.pictures))
    return {"accuracy": score.accuracy, "interval": interval, "probability": score.probability}


def by_presence(concepts: Sequence[Mapping[str, Any]], kind: Domain) -> list[Mapping[str, Any]]:
    """The erased concepts of a domain, the one that is recognised most often first; as they are if nothing was measured
    after."""
    erased = [row for row in concepts if row["kind"] == kind and row["erased"]]

    def presence(row: Mapping[str, Any]) -> tuple[float, float]:
        return tuple(-row["after"][name] for name in ("accuracy", "probability"))

    return sorted(erased, key=presence) if all(row["after"] for row in erased) else erased


def by_harm(concepts: Sequence[Mapping[str, Any]], kinds: Collection[Domain]) -> list[Mapping[str, Any]]:
    """The kept concepts of the domains, the largest fall of accuracy first, then of probability; as they are if nothing
    was measured after."""
    neighbours = [row for row in concepts if row["kind"] in kinds and not row["erased"]]

    def change(row: Mapping[str, Any]) -> tuple[float, float]:
        return tuple(row["after"][name] - row["before"][name] for name in ("accuracy", "probability"))

    return sorted(neighbours, key=change) if all(row["after"] for row in neighbours) else neighbours
