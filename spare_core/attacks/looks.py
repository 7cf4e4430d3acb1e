"""When an attack that learns has the concept back: looked at after 8, 16, 32 … steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_FIRST: Final = 8


class Looks:
    """``shares`` is the share of pictures that showed the concept, by the steps made. ``look`` draws and judges them as
    the model is now; it is not asked again once half of them do, but for the end.

    ``half`` is how many steps that took, None if it did not happen.
    """

    def __init__(self, steps: int, look: Callable[..., dict[str, Any]]) -> None:
        self._steps, self._look, self._due = steps, look, _FIRST
        self.shares: dict[int, float] = {}
        self.half: int | None = None
        self.last: dict[str, Any] = {}

    def after(self, step: int, *state: Any) -> None:
        """Look at ``state``, if it is time to."""
        at_end, due = step == self._steps, step == self._due
        if due:
            self._due *= 2
        if not at_end and (not due or self.half is not None):
            return
        self.last = self._look(*state)
        self.shares[step] = self.last["shown"]
        if self.half is None and self.last["shown"] >= 0.5:
            self.half = step

    def as_dict(self) -> dict[str, Any]:
        """The last look, when half of the pictures first showed it, and what each look saw."""
        return {**self.last, "half": self.half, "shares": {str(step): share for step, share in self.shares.items()}}
