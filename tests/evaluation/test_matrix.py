"""What each change of a bundle left of each concept."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from spare_core.evaluation.matrix import change, continued, matrix_plot, rebounds, shown


def report(**left: float) -> dict[str, Any]:
    """An evaluation of these residuals; the judge still sees that share of each."""
    rows = [{"concept": name.upper(), "erased": True, "after": {"accuracy": value}} for name, value in left.items()]
    return {"per_concept": rows, "residuals": left, "adapters": [{"sha256": "0" * 64}], "base_digest": "b"}


def test_a_history_grows_by_a_row_for_each_change() -> None:
    first = {"history": continued(None, report(a=0.1, b=0.2))}
    second = {"history": continued(first, report(a=0.3, b=0.1, c=0.05))}
    third = continued(second, report(a=0.2, c=0.5))
    assert [(row["added"], row["withdrawn"]) for row in third] == [(["a", "b"], []), (["c"], []), ([], ["b"])]
    assert third[0]["concepts"] == {"a": {"residual": 0.1, "ua": 0.9}, "b": {"residual": 0.2, "ua": 0.8}}
    assert len(first["history"]) == 1, "the one before is left as it was"


def test_a_rebound_is_counted_from_when_a_concept_was_added_last() -> None:
    """Not from before it was withdrawn; what was added just now cannot rebound."""
    history: list[dict[str, Any]] = []
    for left in ({"a": 0.1, "b": 0.1}, {"b": 0.2}, {"a": 0.3, "b": 0.3}, {"a": 0.4, "b": 0.4, "c": 0.9}):
        history = continued({"history": history} if history else None, report(**left))
    assert rebounds(history) == [
        {"concept": "a", "then": 0.3, "now": 0.4, "after": "adding c"},
        {"concept": "b", "then": 0.1, "now": 0.4, "after": "adding c"},
    ]
    assert [change(row) for row in history] == ["adding a, b", "withdrawing a", "adding a", "adding c"]


def test_of_a_hundred_the_ten_that_are_left_most_are_shown_and_the_mean_of_the_others() -> None:
    first = continued(None, report(**{f"n{i}": 0.1 for i in range(99)}))
    history = continued({"history": first}, report(**{f"n{i}": i / 100 for i in range(100)}))
    before, after = shown(history)
    assert [*after["concepts"]] == [*(f"n{i}" for i in range(99, 89, -1)), "mean of 90 others"]
    assert after["concepts"]["n99"] == {"residual": 0.99, "ua": pytest.approx(0.01)}
    assert after["concepts"]["mean of 90 others"]["residual"] == pytest.approx(sum(range(90)) / 90 / 100)
    assert before["concepts"]["n99"] is None, "it was not there yet"
    assert before["concepts"]["mean of 90 others"]["residual"] == pytest.approx(0.1)
    few = continued(None, report(b=0.1, a=0.2))
    assert shown(few) == few
    assert Image.open(io.BytesIO(matrix_plot(history))).size[0] < 2500


def test_the_plot_takes_any_name() -> None:
    """Names come from takedown lists."""
    first = continued(None, report(**{"$x^{": 0.1, "a" * 200: 0.2}))
    picture = Image.open(io.BytesIO(matrix_plot(continued({"history": first}, report(**{"$x^{": 0.1, "Ω": 1.4})))))
    assert picture.size[0] > picture.size[1] > 100
