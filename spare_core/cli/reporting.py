"""How every command of ``spare`` ends: its result on stdout, or one line on stderr and an exit code."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from spare_core.errors import SpareError, explained

Json = Annotated[bool, typer.Option("--json", help="print the result as one JSON document on stdout")]

_TAKES: Final = "; the same command takes what is done"
_ON: Final = "; the same command goes on from the last checkpoint"
_GOES_ON: Final = {"erase": _ON, "compose": _ON, "run": _TAKES, "demo": _TAKES}


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turn this library's errors into a line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except SpareError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except (RuntimeError, MemoryError) as error:
            known = explained(error)
            if known is None:
                raise
            print(f"error: {known}", file=sys.stderr)
            raise typer.Exit(known.exit_code) from None
        except KeyboardInterrupt:
            print(f"stopped{_GOES_ON.get(command.__name__, '')}", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


def print_result(value: Any, as_json: bool, text: str) -> None:
    """The result as JSON, or as text for people."""
    print(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)
