"""Progress on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

OnProgress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The default: tell nobody."""


class ProgressDisplay:
    """Call it with ``(stage, done, total)``; use it as a context manager."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._started = time.monotonic()
        self._said: dict[str, float] = {}

    def __enter__(self) -> ProgressDisplay:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Bars(*columns, console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if self._bars is None:
            self._line(stage, done, total)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        # A stage that counts its own steps ends with (1, 1); what it had counted to is then its total.
        if done < total or total > 1:
            self._bars.update(self._tasks[stage], completed=done, total=total)
        else:
            task = next(task for task in self._bars.tasks if task.id == self._tasks[stage])
            self._bars.update(task.id, completed=max(task.completed, 1), total=max(task.completed, 1))

    def _line(self, stage: str, done: int, total: int) -> None:
        """One line when a stage ends, and every ten seconds within it."""
        now = time.monotonic()
        if done < total and now - self._said.get(stage, now if done == 0 else 0.0) < 10.0:
            self._said.setdefault(stage, now)
            return
        self._said[stage] = now
        count = f" {done}/{total}" if total > 1 else ""
        print(f"[{now - self._started:6.1f} s] {stage}{count}", file=sys.stderr, flush=True)
