"""The cache's bound: what was used longest ago goes, and never what some process still uses.

A folder in use has a lock file beside it that each of its users holds, shared, until its process ends; the kernel takes
back what a killed one held. Whoever removes must get it alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Final

from spare_core.errors import SettingsError
from spare_core.store.disk import acquire

LIMIT: Final = "SPARE_CACHE_LIMIT"
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) *([kMGT]?)i?B?")
_UNITS: Final = {"": 1, "k": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_held: dict[Path, int] = {}
"""The open lock file of each folder that this process uses."""


def use(folder: Path) -> None:
    """Keep ``folder``, there or not yet, from being removed until this process ends; it is the latest to be used."""
    lock = _lock_of(folder)
    handle = _held.get(lock)
    if handle is None or not lock.exists() or lock.stat().st_ino != os.fstat(handle).st_ino:
        while (handle := acquire(lock, fcntl.LOCK_SH)) is None:
            pass
        _held[lock] = handle
    os.utime(handle)


def shrink(*roots: Path) -> None:
    """Remove folders ``root/*/*`` until their files have together at most the bytes that SPARE_CACHE_LIMIT allows.

    Raises:
        SettingsError: if that is no size.
    """
    limit = allowed()
    if limit is None:
        return
    folders = [folder for root in roots for folder in root.glob("*/*/")]
    sizes = {folder: _size(folder) for folder in folders if _lock_of(folder).exists()}
    total = sum(sizes.values())
    for folder in sorted(sizes, key=lambda one: _lock_of(one).stat().st_mtime_ns):
        if total <= limit:
            return
        if _remove(folder):
            total -= sizes[folder]


def allowed() -> int | None:
    """The bound in bytes; None for none."""
    given = os.environ.get(LIMIT, "").strip()
    if not given:
        return None
    size = _SIZE.fullmatch(given)
    if size is None:
        raise SettingsError([f"{LIMIT} is {given!r}; it must be a size such as 50G, 500M or a number of bytes"])
    return int(float(size[1]) * _UNITS[size[2]])


def _remove(folder: Path) -> bool:
    """Whether it could be removed: nobody uses it."""
    try:
        handle = acquire(_lock_of(folder), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if handle is not None:
        shutil.rmtree(folder)
        _lock_of(folder).unlink()
        os.close(handle)
    return True


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.used")
