"""From the grids before and after to the figures of a report; no model, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spare_core.concept import same_concept
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
)
from spare_core.evaluation.suite import Domain, Suite


@dataclass(frozen=True)
class Question:
    """Of which suite, which concepts of which domain are said to be gone; ``erased`` are rows of that domain.

    ``kept`` and ``surrogates`` are the names that the adapters' own requests give. ``aside`` are further concepts, by
    domain, that the adapters erase and that are not asked about: a picture whose prompt names one is neither to show it
    nor to be as before, and is left out of every figure.
    """

    suite: Suite
    kind: Domain
    erased: tuple[int, ...]
    kept: tuple[str, ...] = ()
    surrogates: tuple[str, ...] = ()
    aside: Mapping[Domain, tuple[int, ...]] = field(default_factory=dict)

    def asked(self, grid: GridResult) -> GridResult:
        """The pictures that the figures are of."""
        columns: dict[Domain, Tensor] = {"style": grid.styles, "object": grid.objects}
        aside = [torch.isin(columns[domain], torch.tensor(rows)) for domain, rows in self.aside.items() if rows]
        return grid.take(~torch.stack(aside).any(dim=0)) if aside else grid

    @property
    def erased_names(self) -> tuple[str, ...]:
        """As the suite writes them."""
        return tuple(self.suite.names(self.kind)[row] for row in self.erased)

    @property
    def surrogate_rows(self) -> list[int]:
        """Surrogates that are in the suite."""
        names = self.suite.names(self.kind)
        return [row for row, name in enumerate(names) if _among(name, self.surrogates)]


def findings(
    before: GridResult, after: GridResult | None, question: Question, reference: Reference | None
) -> dict[str, Any]:
    """``counts``, ``base``, ``adapted``, ``per_concept``, ``confusion``, ``worst_neighbour`` and ``damage`` of a
    report."""
    kind, gone = question.kind, names_erased(before.verdicts, question.erased, question.kind)
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
        "worst_neighbour": None if after is None else next(iter(by_harm(concepts, kind)), None),
        "damage": None if after is None else compare(before.pictures, after.pictures, gone),
    }


def _kept_features(reference: Reference, question: Question) -> Tensor:
    """Of the real pictures without the erased concepts."""
    gone = {domain: set(rows) for domain, rows in question.aside.items()}
    gone.setdefault(question.kind, set()).update(question.erased)
    shown = {"style": reference.styles.tolist(), "object": reference.objects.tolist()}
    out = [any(shown[domain][i] in rows for domain, rows in gone.items()) for i in range(len(reference.features))]
    return reference.features[~torch.tensor(out)]


def _scores(grid: GridResult, question: Question, gone: Tensor, real: Tensor | None) -> dict[str, Figure | Distance]:
    scores: dict[str, Figure | Distance] = dict(ua_ira_cra(grid.verdicts, question.erased, question.kind)._asdict())
    return scores if real is None else {**scores, "fid": fid(grid.features[~gone], real)}


def _figures(scores: Mapping[str, Figure | Distance]) -> dict[str, Any]:
    values = {name: score.value for name, score in scores.items()}
    intervals = {name: [score.low, score.high] for name, score in scores.items()}
    return {"fid": None, **values, "intervals": intervals}


def _denominators(score: Figure | Distance) -> dict[str, int]:
    return {name: value for name, value in score._asdict().items() if name not in ("value", "low", "high")}


def per_concept(before: GridResult, after: GridResult | None, question: Question) -> list[dict[str, Any]]:
    """Every concept of both domains with accuracy and mean probability, before and after."""
    first = concept_scores(before.verdicts, question.erased, question.kind)
    second = [] if after is None else list(concept_scores(after.verdicts, question.erased, question.kind))
    rows = []
    for i, score in enumerate(first):
        name = question.suite.names(score.kind)[score.concept]
        same_domain = score.kind == question.kind
        rows.append({
            "concept": name,
            "kind": score.kind,
            "erased": score.erased,
            "kept": same_domain and _among(name, question.kept),
            "surrogate": same_domain and _among(name, question.surrogates),
            "pictures": score.pictures,
            "before": _accuracy(score),
            "after": _accuracy(second[i]) if second else None,
        })  # fmt: skip
    return rows


def _confusion(before: GridResult, after: GridResult | None, question: Question) -> dict[str, Any]:
    """In the domain of the erased concepts: what was prompted (rows) against what the judge named (columns)."""
    names = question.suite.names(question.kind)
    counts = [grid and confusion(grid.verdicts.column(question.kind), len(names)) for grid in (before, after)]
    return {"labels": [*names, "(none of these)"], "base": counts[0], "adapted": counts[1]}


def _among(name: str, names: Sequence[str]) -> bool:
    return any(same_concept(name, other) for other in names)


def _accuracy(score: ConceptScore) -> dict[str, float]:
    return {"accuracy": score.accuracy, "probability": score.probability}


def by_harm(concepts: Sequence[Mapping[str, Any]], kind: Domain) -> list[Mapping[str, Any]]:
    """The kept concepts of a domain, the largest fall of accuracy first, then of probability; as they are if nothing
    was measured after."""
    neighbours = [row for row in concepts if row["kind"] == kind and not row["erased"]]

    def change(row: Mapping[str, Any]) -> tuple[float, float]:
        return tuple(row["after"][name] - row["before"][name] for name in ("accuracy", "probability"))

    return sorted(neighbours, key=change) if all(row["after"] for row in neighbours) else neighbours
