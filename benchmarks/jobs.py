"""What benchmarks of many concepts share: jobs in processes of their own, and rows in files."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(run: Callable[[_Job], _Result], jobs: Iterable[_Job], at_once: int) -> Iterator[_Result]:
    """What ``run`` returns of each of ``jobs``, as they end; each job in a fresh process, so many at once."""
    with multiprocessing.get_context("spawn").Pool(at_once, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(run, jobs)


def read_rows(output: Path) -> list[dict[str, Any]]:
    """What all jobs have written below ``output``, a JSON line each; a last line that a kill cut off is left out."""
    return [json.loads(line) for path in sorted(output.glob("*.jsonl")) for line in path.read_text().split("\n")[:-1]]


def read_settings(items: Sequence[str]) -> dict[str, Any]:
    """Of ``--set NAME=VALUE``, values as JSON, or as they are where they are none."""
    return {name: _json(value) for name, value in (item.split("=", 1) for item in items)}


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
