"""The best of numbers whose right size is unknown: by measuring, on a geometric grid."""

from __future__ import annotations

from collections.abc import Callable


def climb(
    cost: Callable[[float], float],
    start: float,
    factors: tuple[float, float],
    bounds: tuple[float, float],
    worth: float = 1.0,
) -> float:
    """From ``start`` by the first of ``factors`` for as long as each number costs less than ``worth`` times the one
    before, within ``bounds``; if not even one did, by the second. ``cost`` is asked again of numbers that it was asked
    of before."""
    low, high = bounds
    best = start
    for factor in factors:
        while low <= best * factor <= high and cost(best * factor) < worth * cost(best):
            best *= factor
        if best != start:
            break
    return best
