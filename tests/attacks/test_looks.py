"""Looks tell when a concept was back, and cost no more than they must."""

from __future__ import annotations

from typing import Any

import pytest

from spare_core.attacks.looks import Looks


@pytest.mark.parametrize(
    ("steps", "back", "half", "looked"),
    [(64, 20, 32, [8, 16, 32, 64]), (40, 100, None, [8, 16, 32, 40]), (4, 2, 4, [4]), (16, 1, 8, [8, 16])],
)
def test_it_is_looked_at_ever_more_rarely_until_it_is_back_and_at_the_end(
    steps: int, back: int, half: int | None, looked: list[int]
) -> None:
    def look(step: int) -> dict[str, Any]:
        return {"shown": 1.0 if step >= back else 0.25}

    looks = Looks(steps, look)
    for step in range(1, steps + 1):
        looks.after(step, step)
    assert [*looks.shares] == looked
    assert looks.half == half
    assert looks.as_dict()["shown"] == (1.0 if back <= steps else 0.25)
