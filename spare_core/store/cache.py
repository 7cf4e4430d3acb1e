"""What was fetched from S3, kept on this machine: a second fetch of unchanged objects asks for their listing only.

``CACHE/s3/<address>/<listing>/`` holds the files of one listing. It is filled under another name and renamed when it is
whole, under a lock, so several processes may ask for the same at once; a killed one leaves what it got to the next.
It grows without bound unless ``SPARE_CACHE_LIMIT`` sets one ("50G"): then a fetch removes what was used longest ago,
but nothing while a process that fetched it is alive (:mod:`spare_core.store.eviction`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spare_core.errors import ObjectMissing, StorageError
from spare_core.files.addresses import S3Address, parse_s3
from spare_core.store.base import Entry, OnBytes, no_progress
from spare_core.store.connect import s3_store
from spare_core.store.disk import disk_errors, exclusive
from spare_core.store.eviction import allowed, shrink, use

if TYPE_CHECKING:
    from spare_core.store.s3 import S3Store


SINGLE_FILES = "single-file"
"""Folder of the cache for models that were one file, as the directories that were made of them."""
Narrow = Callable[[Sequence[str]], Sequence[str]]
"""Of several names those that are meant."""


def cache_folder() -> Path:
    """``$SPARE_CACHE``, ``$XDG_CACHE_HOME/spare`` or ``~/.cache/spare``."""
    if os.environ.get("SPARE_CACHE"):
        return Path(os.environ["SPARE_CACHE"]).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "spare"
    try:
        return Path.home() / ".cache" / "spare"
    except RuntimeError:
        raise StorageError("this user has no home folder to keep a cache in; set SPARE_CACHE") from None


def _keep_within_limit() -> None:
    """Remove what was used longest ago of what was fetched, and of what was made of it, where a limit is set."""
    shrink(cache_folder() / "s3", cache_folder() / SINGLE_FILES)


def fetch(
    uri: str, on_progress: OnBytes = no_progress, wanted: Sequence[str] = (), narrow: Narrow | None = None
) -> Path:
    """An ``s3://`` folder or object as a local path, fetched if it is not in the cache; not to be written to.

    Args:
        uri: a bucket, a folder in it, or one object.
        on_progress: called with bytes done and bytes there are; starts again if objects changed on the way.
        wanted: only the names under ``uri`` that match one of these patterns; "*" also matches "/".
        narrow: and of these only the ones that it returns.

    Raises:
        SettingsError: if ``uri`` is no such address.
        ObjectMissing: if there is nothing there.
        StoreError: if it cannot be had; in under ten seconds if the storage does not answer at all.
        StorageError: if the disk would not take it.
    """
    address = parse_s3(uri)
    allowed()
    store = s3_store(address)
    from spare_core.store.downloads import until_unchanged

    return until_unchanged(lambda: _fetch(store, address, wanted, narrow, on_progress))


def _fetch(
    store: S3Store, address: S3Address, wanted: Sequence[str], narrow: Narrow | None, on_progress: OnBytes
) -> Path:
    from spare_core.store.downloads import download

    found = {entry.key: entry for entry in store.entries("", hasty=True) if _matches(entry.key, wanted)}
    if narrow is not None:
        found = {name: found[name] for name in narrow([*found])}
    single = None
    if not found and address.prefix and not wanted:
        folder, _, single = address.prefix.rpartition("/")
        store = s3_store(S3Address(address.bucket, folder))
        entry = store.entry(single)
        found = {single: entry} if entry else {}
    if not found:
        which = f" that matches {', '.join(wanted)}" if wanted else ""
        raise ObjectMissing(f"there is nothing at {address.uri}{which}; check bucket and prefix, or upload it first")
    home = cache_folder() / "s3" / short_digest([store.host, address.uri])
    ready = home / short_digest([list(entry) for entry in found.values()])

    def fill(folder: Path) -> None:
        download(store, found, folder, on_progress)
        _prune(folder, found)

    filled(ready, lambda: _is_whole(ready, found), fill)
    return ready / single if single else ready


def filled(ready: Path, is_whole: Callable[[], bool], fill: Callable[[Path], None]) -> Path:
    """The folder ``ready`` of the cache, which this process uses from now on. Where it is not whole, ``fill`` fills
    another one beside it, which may hold what an earlier one left there, and which then takes its name; one process at
    a time.

    Raises:
        StorageError: if the disk would not take it.
    """
    home = ready.parent
    with disk_errors(home):
        use(ready)
    if not is_whole():
        with disk_errors(home), exclusive(home / "lock"):
            if not is_whole():
                shutil.rmtree(ready, ignore_errors=True)
                fill(home / "filling")
                (home / "filling").rename(ready)
        with disk_errors(home):
            _keep_within_limit()
    return ready


def _is_whole(ready: Path, found: Mapping[str, Entry]) -> bool:
    """Whether it was filled, and nobody deleted a part of it since."""
    with contextlib.suppress(OSError):
        return all((ready / name).stat().st_size == entry.size for name, entry in found.items())
    return False


def _matches(name: str, wanted: Sequence[str]) -> bool:
    return not wanted or any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)


def short_digest(value: list[Any]) -> str:
    """A name for what ``value`` describes, ``value`` being plain values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _prune(folder: Path, found: Mapping[str, Entry]) -> None:
    """Remove what an earlier, unfinished filling fetched of an older listing."""
    for path in folder.rglob("*"):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in found:
            path.unlink()
