"""Where what a person names lies: on this machine, or in an object storage from which it has to be fetched first."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from spare_core.errors import InputError


def is_s3(source: str | Path) -> bool:
    """Whether ``source`` is meant as an address in S3."""
    return str(source)[:5].lower() == "s3://"


def local_path(
    source: str | Path,
    wanted: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """A local path as it is, whether or not something is there; for an ``s3://`` address where its copy lies.

    Args:
        source: a path, or the address of a folder or an object.
        wanted: of a folder in S3, fetch only the names that match one of these patterns.
        on_progress: called with the bytes fetched and the bytes there are.

    Raises:
        StoreError: if it cannot be fetched.
        InputError: if the address is malformed.
    """
    if is_s3(source):
        # By name and only now: the method knows no service, and boto3 need not be installed to do without one.
        path: Path = importlib.import_module("spare_core.store").fetch(str(source), on_progress, wanted)
        return path
    if str(source).startswith("s3:/"):
        raise InputError(f"{str(source)!r} is neither a path nor an address; write s3://bucket/prefix")
    return Path(source)
