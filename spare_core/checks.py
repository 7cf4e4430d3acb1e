"""Checks that name every problem at once: the fields of settings objects, and attempts that go on after a failure.

A field of a frozen dataclass that has ``low`` in its metadata is checked against its type and against ``low``, ``high``
(inclusive; ``open_low``: without ``low`` itself); ``meaning`` is told in errors and in ``--help``.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, TypeVar

from spare_core.errors import SettingsError, SpareError

_T = TypeVar("_T")


def field_problems(settings: Any) -> list[str]:
    """Every field of a settings object whose type or range is wrong; fields without a range in their metadata aside."""
    hints = typing.get_type_hints(type(settings))
    problems = []
    for f in fields(settings):
        if "low" not in f.metadata:
            continue
        value, hint = getattr(settings, f.name), hints[f.name]
        if typing.get_origin(hint) is Literal:
            allowed = typing.get_args(hint)
            if value not in allowed:
                problems.append(f"{f.name} is {value!r}; allowed: {', '.join(allowed)}")
            continue
        words = [word for part in typing.get_args(hint) for word in typing.get_args(part)]
        if words:  # a number or a word
            if value in words:
                continue
            hint = next(part for part in typing.get_args(hint) if not typing.get_args(part))
        if hint is float and type(value) in (int, str):
            # YAML reads 1e-3 as text: it wants 1.0e-3.
            value = _as_float(value)
            object.__setattr__(settings, f.name, value)
        if type(value) is not hint:
            kinds = " or ".join([f"of type {hint.__name__}", *words])
            problems.append(f"{f.name} is {value!r}; it must be {kinds} ({f.metadata['meaning']})")
            continue
        low, high, open_low = f.metadata["low"], f.metadata["high"], f.metadata["open_low"]
        if low is None:
            continue
        inside = (low < value if open_low else low <= value) and value <= high  # NaN is inside nothing
        if not inside:
            bracket = "(" if open_low else "["
            problems.append(f"{f.name} is {value}; allowed: {bracket}{low:g}, {high:g}] ({f.metadata['meaning']})")
    return problems


def _as_float(value: int | str) -> float | int | str:
    """``value`` as a float, or as it is where it is none."""
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


class Collected:
    """Attempts that go on after a failure, and what went wrong in all of them; ``wrong`` names the parameters that are
    wrong in themselves."""

    def __init__(self, problems: list[str], wrong: set[str]) -> None:
        self.problems, self.wrong = problems, wrong

    def attempt(self, check: Callable[[], _T], *needs: str) -> _T | None:
        """What ``check`` returns; None if it fails, or if a parameter that it needs is wrong in itself."""
        if self.wrong & {*needs}:
            return None
        try:
            return check()
        except SettingsError as error:
            self.problems += error.problems
        except SpareError as error:
            self.problems.append(str(error))
        return None
