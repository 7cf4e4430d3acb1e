"""Where pictures of a list may lie. A list is written by somebody else, and the task that reads it may read more than
they may: its own disk, and other buckets."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from spare_core.errors import ImagesError, InputError, SettingsError
from spare_core.files.addresses import is_s3, parse
from spare_core.store import open_store

SOURCES: Final = "SPARE_SOURCES"
"""Prefixes, with commas between them, that pictures of lists are read from; without it none is."""
MOST_BYTES: Final = 64 * 2**20
"""Of one picture."""


def sources() -> list[str]:
    """The prefixes that are set, each with a slash at its end.

    Raises:
        InputError: for one that is neither in S3 nor an absolute folder.
    """
    found = []
    for prefix in filter(None, map(str.strip, os.environ.get(SOURCES, "").split(","))):
        try:
            where = parse(prefix)
        except SettingsError:
            raise InputError(
                f"{SOURCES} names {prefix!r}; it must be s3://bucket/prefix/ or the absolute path of a folder, several "
                "with commas between them"
            ) from None
        found.append((where if isinstance(where, str) else where.uri).rstrip("/") + "/")
    return found


def not_from_a_source(uri: str) -> str:
    """In words why nobody reads a picture at ``uri`` for a list; empty if it may be read.

    Raises:
        InputError: as :func:`sources`.
    """
    if not is_s3(uri) and not Path(uri).is_absolute():
        return f"its picture {uri!r} is neither an s3:// address nor an absolute path"
    prefixes = sources()
    if not prefixes:
        return f"it names the picture {uri!r}, and {SOURCES} does not say where pictures of lists may be read from"
    if is_s3(uri):
        inside = any(uri.startswith(prefix) for prefix in prefixes if is_s3(prefix))
        inside = inside and not {"", ".", ".."} & {*uri[len("s3://") :].split("/")}
    else:
        real = Path(uri).resolve()  # a link out of the folder is outside of it
        inside = any(real.is_relative_to(Path(prefix).resolve()) for prefix in prefixes if not is_s3(prefix))
    return "" if inside else f"its picture {uri!r} lies outside of what {SOURCES} allows: {', '.join(prefixes)}"


def read_picture(uri: str) -> bytes:
    """A picture that a list names, read past the cache of what is fetched.

    Raises:
        InputError: as :func:`sources`.
        ImagesError: if it may not be read, cannot be, or is no file of a picture's size.
        StoreError: for one that cannot be fetched.
    """
    if reason := not_from_a_source(uri):
        raise ImagesError(reason)
    if not is_s3(uri):
        return _read_file(uri)
    folder, _, name = uri.rpartition("/")
    return open_store(folder).read(name, MOST_BYTES)


def _read_file(uri: str) -> bytes:
    try:
        # A pipe without a writer would be waited for.
        with os.fdopen(os.open(uri, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            there = os.fstat(file.fileno())
            if not stat.S_ISREG(there.st_mode) or there.st_size > MOST_BYTES:
                raise ImagesError(f"the picture {uri!r} is no file of at most {MOST_BYTES >> 20} MiB")
            return file.read(MOST_BYTES)
    except OSError as error:
        raise ImagesError(f"the picture {uri!r} cannot be read: {error.strerror or error}") from None
