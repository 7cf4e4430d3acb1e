"""Erasures that only look like one do not pass the gate: Canvas's own grid, with pictures put in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from spare_core.evaluation.findings import Question, findings
from spare_core.evaluation.gate import Policy, Verdict, judge_figures
from spare_core.evaluation.grid import GridResult, _judged, draw_grid
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.suite import Cells, Suite, load_suite
from spare_core.models.loading import load_denoiser
from tests.support.registrations import figures

ERASED, SURROGATE, NEIGHBOUR = "Neon Lines", "Photo", "Rust"


class Drawn(NamedTuple):
    """What Canvas draws, with its judge."""

    suite: Suite
    judge: Judge
    grid: GridResult

    def rows(self, style: str) -> Tensor:
        """The pictures of a style, by object."""
        return (self.grid.styles == self.suite.styles.index(style)).nonzero().flatten()

    def with_pictures(self, style: str, pixels: Tensor) -> GridResult:
        """``pixels`` in place of a style's pictures, judged."""
        rows, grid = self.rows(style), self.grid
        cells = Cells(grid.objects[rows], grid.styles[rows], grid.seeds[rows])
        judged = _judged(cells, self.judge.judge(pixels), pixels)
        changed = {}
        for name, values in vars(grid).items():
            changed[name] = values.clone()
            changed[name][rows] = judged[name].to(values.dtype)
        return GridResult(**changed)

    def drawn_as(self, style: str, other: str, grid: GridResult | None = None) -> GridResult:
        """A style's pictures as Canvas draws another style's: what an erasure does."""
        before = grid or self.grid
        rows, theirs = self.rows(style), self.rows(other)
        changed = {name: values.clone() for name, values in vars(before).items()}
        for name in changed.keys() - {"objects", "styles", "seeds"}:
            changed[name][rows] = getattr(self.grid, name)[theirs]
        return GridResult(**changed)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    suite = dataclasses.replace(load_suite("canvas").restricted(seeds=1), steps=5)
    judge = load_judge(suite)
    return Drawn(suite, judge, draw_grid(load_denoiser("canvas", "cpu"), suite, judge))


def judged(drawn: Drawn, after: GridResult) -> Verdict:
    """The gate's verdict on pictures; residual and drift are those of a good erasure."""
    row = drawn.suite.styles.index
    question = Question(drawn.suite, {"style": (row(ERASED),)}, becomes={("style", row(ERASED)): row(SURROGATE)})
    report: dict[str, Any] = {**figures(), **findings(drawn.grid, after, question, None)}
    return judge_figures(report, dataclasses.replace(Policy.from_file(), fid=False))


def rules(verdict: Verdict) -> set[str]:
    return {reason.rule for reason in verdict.reasons if not reason.passed}


def test_pictures_of_the_surrogate_in_place_of_the_concepts_pass(drawn: Drawn) -> None:
    verdict = judged(drawn, drawn.drawn_as(ERASED, SURROGATE))
    assert verdict.passed, verdict.refusals


def test_an_adapter_that_does_nothing_is_refused(drawn: Drawn) -> None:
    assert rules(judged(drawn, drawn.grid)) >= {"min_ua", "min_surrogate"}


@pytest.mark.parametrize(
    "picture",
    [
        lambda shape: torch.rand(shape, generator=torch.Generator().manual_seed(0)),
        lambda shape: torch.full(shape, 0.5),
        lambda shape: torch.rand((1, *shape[1:]), generator=torch.Generator().manual_seed(0)).expand(shape),
    ],
    ids=["noise", "flat grey", "one picture"],
)
def test_what_is_no_picture_of_the_surrogate_is_refused(
    drawn: Drawn, picture: Callable[[tuple[int, ...]], Tensor]
) -> None:
    """The concept is forgotten, says UA."""
    pixels = picture((len(drawn.rows(ERASED)), 3, 64, 64))
    refused = rules(judged(drawn, drawn.with_pictures(ERASED, pixels)))
    assert "min_ua" not in refused
    assert refused >= {"min_surrogate", "max_cra_erased_loss", "max_damaged_erased"}


def test_an_erasure_of_another_concept_is_refused(drawn: Drawn) -> None:
    assert rules(judged(drawn, drawn.drawn_as(NEIGHBOUR, SURROGATE))) >= {"min_ua", "min_surrogate", "max_concept_loss"}


def test_an_erasure_that_takes_a_neighbour_along_is_refused_by_its_name(drawn: Drawn) -> None:
    after = drawn.drawn_as(NEIGHBOUR, SURROGATE, drawn.drawn_as(ERASED, SURROGATE))
    verdict = judged(drawn, after)
    assert "max_concept_loss" in rules(verdict)
    assert any(text.startswith(f"fall of the accuracy of {NEIGHBOUR!r}") for text in verdict.refusals)
