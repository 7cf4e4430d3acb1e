"""The best number is found wherever it lies, and no number is asked for twice that need not be."""

from __future__ import annotations

import math

import pytest

from spare_core.method.search import climb


@pytest.mark.parametrize(
    ("wanted", "found"), [(1.0, 1.0), (70.0, 64.0), (0.01, 1 / 64), (1e9, 1024.0), (1e-9, 1 / 1024)]
)
def test_it_goes_to_the_best_number_in_either_direction_but_not_out_of_bounds(wanted: float, found: float) -> None:
    assert climb(lambda n: abs(math.log(n / wanted)), 1.0, (4.0, 0.25), (1 / 1024, 1024.0)) == found


def test_the_second_direction_is_tried_only_where_the_first_brings_nothing() -> None:
    asked = set()

    def cost(number: float) -> float:
        asked.add(number)
        return -number

    assert climb(cost, 1.0, (2.0, 0.5), (0.1, 10.0)) == 8.0
    assert asked == {1.0, 2.0, 4.0, 8.0}


def test_what_is_hardly_better_is_not_worth_going_on_for() -> None:
    """Unless the number before could not be used at all."""
    costs = {1.0: math.inf, 2.0: 1.0, 4.0: 0.995, 8.0: 0.1}
    assert climb(costs.__getitem__, 1.0, (2.0, 0.5), (1.0, 8.0), worth=0.99) == 2.0
