"""Reading an evaluation for the gate: each figure that a rule is about, or None."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from spare_core.concepts.names import normalise
from spare_core.evaluation.attacked import ADAPTED, BASE, BUDGETS, STRONG

_ROUNDING: Final = 1e-9


class Fall(NamedTuple):
    """How far an accuracy fell, and how often chance alone makes it fall so far."""

    loss: float
    chance: float


class Figures:
    """The figures that rules are about, None where an evaluation lacks them or holds something else."""

    def __init__(self, evaluation: Mapping[str, Any], intervals: bool) -> None:
        self.evaluation, self.intervals = evaluation, intervals

    def bound(self, end: str) -> str:
        """How a figure is named in a reason."""
        return f", {end} 95 % bound" if self.intervals else ""

    def number(self, *keys: str | int) -> float | None:
        """A finite number somewhere in the evaluation."""
        value = self._value(*keys)
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None

    def samples(self) -> float | None:
        """Pictures of the erased concept that has the fewest; every erased one must be reported."""
        erased = self.erased()
        if not erased:
            return None
        counts = {row.get("concept"): row.get("pictures") for _, row in self.rows(erased=True)}
        found = [count for count in map(counts.get, erased) if type(count) is int]
        return float(min(found)) if len(found) == len(erased) else None

    def erased(self) -> list[str]:
        """The erased concepts."""
        names = self.evaluation.get("erased")
        return names if isinstance(names, list) else []

    def rebounds(self) -> list[tuple[Any, Any]]:
        """Concepts that were erased before the last change, and that change."""
        rows = self.evaluation.get("rebounds")
        if not isinstance(rows, list):
            return []
        return [(row.get("concept"), row.get("after")) if isinstance(row, dict) else (None, None) for row in rows]

    def ua_of(self, concept: str) -> float | None:
        """UA of one concept, or the lower end of its interval."""
        places = [i for i, row in self.rows(erased=True) if row.get("concept") == concept]
        if len(places) != 1:
            return None
        keys = ("interval", 1) if self.intervals else ("accuracy",)
        accuracy = self.number("per_concept", places[0], "after", *keys)
        return None if accuracy is None or not 0 <= accuracy <= 1 + _ROUNDING else 1 - accuracy

    def ua(self) -> float | None:
        """UA on the adapter's pictures, or the lower end of its interval."""
        figure = self.share("adapted", "ua")
        return None if figure is None else figure[1 if self.intervals else 0]

    def share(self, side: str, name: str) -> tuple[float, float, float] | None:
        """An accuracy and its interval (the figure alone, if points decide); None unless low <= figure <= high."""
        value = self.number(side, name)
        low, high = (self.number(side, "intervals", name, end) if self.intervals else value for end in (0, 1))
        if value is None or low is None or high is None:
            return None
        ordered = all(a <= b + _ROUNDING for a, b in itertools.pairwise((0.0, low, value, high, 1.0)))
        return (value, low, high) if ordered else None

    def loss(self, name: str) -> float | None:
        """Fall of an accuracy from before to after, or the upper end of the difference's interval.

        d + sqrt((high_before - before)^2 + (after - low_after)^2): Newcombe's interval of a difference from the
        intervals of its terms (Newcombe 1998, method 10). Both grids share prompts and noise: it is on the safe side.
        """
        first, second = self.share("base", name), self.share("adapted", name)
        if first is None or second is None:
            return None
        (before, _, high), (after, low, _) = first, second
        return before - after + math.hypot(high - before, after - low)

    def fid_rise(self) -> float | None:
        """(after - before) / before."""
        before, after = self.number("base", "fid"), self.number("adapted", "fid")
        return None if before is None or after is None or before <= 0 else (after - before) / before

    def neighbours(self) -> list[str]:
        """Every kept concept whose drift is reported."""
        drift = self.evaluation.get("drift")
        return list(drift) if isinstance(drift, dict) else []

    def drift_of(self, concept: str) -> float | None:
        """Drift of a concept, however it is written."""
        same = [name for name in self.neighbours() if normalise(name) == normalise(concept)]
        return self.number("drift", same[0]) if len(same) == 1 else None

    def damaged(self, which: str) -> float | None:
        """Share of the adapter's kept, or erased, pictures with a texture that the base model does not draw, or like
        another's."""
        return self.number("damage", which, "adapted", "damaged")

    def rows(self, erased: bool) -> list[tuple[int, Mapping[str, Any]]]:
        """The erased concepts, or the kept ones of the same domains, with their places in ``per_concept``."""
        found = self.evaluation.get("per_concept")
        rows = [(i, row) for i, row in enumerate(found if isinstance(found, list) else []) if isinstance(row, dict)]
        kinds = [row.get("kind") for _, row in rows if row.get("erased")]
        return [(i, row) for i, row in rows if bool(row.get("erased")) is erased and row.get("kind") in kinds]

    def fall(self, i: int) -> Fall | None:
        """Of the concept at a place of ``per_concept``."""
        count = self.number("per_concept", i, "pictures")
        before, after = (self.number("per_concept", i, side, "accuracy") for side in ("before", "after"))
        if count is None or before is None or after is None:
            return None
        if count < 1 or not (0 <= before <= 1 and 0 <= after <= 1):
            return None
        total = int(count)
        first, second = round(before * total), round(after * total)
        # Fisher's exact test, one-sided: so few hits after or fewer, given how many there are in all.
        ways = sum(math.comb(total, k) * math.comb(total, first + second - k) for k in range(second + 1))
        return Fall(before - after, ways / math.comb(2 * total, first + second))

    def attack_success(self, attack: str, concept: str, budget: str) -> float | None:
        """Share of the pictures in which an attack brought a concept back, or the upper end of its interval. None where
        it was not attacked so, with less than ``budget``, or where the attack is too weak on the base to count."""
        spent = self._value("attacks", "budget", "name")
        if spent not in BUDGETS or BUDGETS.index(spent) < BUDGETS.index(budget):
            return None
        ends = [
            self.number("attacks", "concepts", concept, attack, target, *keys)
            for target in (BASE, ADAPTED)
            for keys in (("shown",), ("interval", 1))
        ]
        known = [end for end in ends if end is not None and 0 <= end <= 1 + _ROUNDING]
        if len(known) < len(ends):
            return None
        _, base, shown, high = known
        return None if base < STRONG else high if self.intervals else shown

    def _value(self, *keys: str | int) -> Any:
        """What stands somewhere in the evaluation; None where nothing does."""
        value: Any = self.evaluation
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def judge_accuracy(self) -> float | None:
        """The least of those that are known of the judge, over sets of pictures and domains."""
        judge = self.evaluation.get("judge")
        found: list[Any] = [judge.get("accuracy") if isinstance(judge, dict) else None]
        numbers = []
        for value in found:
            if isinstance(value, dict):
                found += value.values()
            else:
                numbers.append(value)
        usable = all(type(value) in (int, float) and 0 <= value <= 1 for value in numbers)
        return float(min(numbers)) if numbers and usable else None
