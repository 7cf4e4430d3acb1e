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
        handle = acquire(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def acquire(path: Path, how: int) -> int | None:
    """The open file ``path`` (made if missing), locked as flock's ``how`` says; None if it was removed while we waited.

    Raises:
        BlockingIOError: with LOCK_NB, if somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, how)
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
