"""The local side: its errors, and a lock that the kernel takes back when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from spare_core.errors import StorageError


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise the file system's errors as StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {folder}: {error.strerror or error}; make room or give another folder (SPARE_CACHE names "
            "that of the cache)"
        ) from error


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` (made if missing), waiting for whoever holds it.

    Its holder may remove the folder it lies in; those who waited then take a new lock in its place.
    """
    handle = None
    while handle is None:
        handle = _acquire(path)
    try:
        yield
    finally:
        os.close(handle)


def _acquire(path: Path) -> int | None:
    """The open, locked file; None if it was removed while we waited."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
