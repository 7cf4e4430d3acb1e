"""Where a command may write its results."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from spare_core.errors import OutputError


def check_output(output: Path, whose: str, ours: Callable[[Path], bool]) -> None:
    """Refuse a place for results before any work: a file, what cannot be written to, or a folder that holds anything
    but ``ours``. ``whose`` says in the error what that would be.

    Raises:
        OutputError: naming what is in the way.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; give a folder for --output")
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing} cannot be written to; give another --output")
    strangers = sorted(path.name for path in output.iterdir() if not ours(path)) if output.is_dir() else []
    if strangers:
        raise OutputError(f"{output} holds {strangers[0]} and no {whose} of ours; give a new or empty --output")
