"""How a task of a pipeline tells whoever runs it what happened: lines on stdout that a program can read too.

A line is ``spare: `` and a JSON object with ``stage`` and ``event``: "start", "done" (with results) or "error" (with
message and exit code). Everything else on stdout is for people.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from spare_core.errors import SpareError, explained

_PREFIX: Final = "spare: "


@contextmanager
def reported(stage: str) -> Iterator[dict[str, Any]]:
    """Tell of a stage's start and end; what the body puts into the dictionary is reported with the latter.

    An error of ours ends the process with its exit code, its words the last line; any other shows where it came from.
    """
    results: dict[str, Any] = {}
    _tell(stage, "start")
    try:
        yield results
    except SpareError as error:
        _fail(stage, str(error), error.exit_code)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        if known := explained(error):
            _fail(stage, str(known), known.exit_code)
            raise SystemExit(known.exit_code) from None
        _fail(stage, f"{type(error).__name__}: {error}", 1)
        raise
    _tell(stage, "done", **results)


def read_event(line: str) -> dict[str, Any] | None:
    """The event that a line tells of, if it does; a runner may have indented it."""
    text = line.strip()
    if not text.startswith(_PREFIX):
        return None
    try:
        event = json.loads(text.removeprefix(_PREFIX))
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"stage", "event"} <= event.keys() else None


def _tell(stage: str, event: str, **more: Any) -> None:
    print(_PREFIX + json.dumps({"stage": stage, "event": event, **more}, ensure_ascii=False), flush=True)


def _fail(stage: str, message: str, exit_code: int) -> None:
    _tell(stage, "error", message=message, exit_code=exit_code)
    print(f"error: {message}", file=sys.stderr, flush=True)
