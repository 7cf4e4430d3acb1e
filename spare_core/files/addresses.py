"""What names a place in a store: addresses that people write, and keys, which may come from anyone's list."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Final, NamedTuple

from spare_core.errors import SettingsError

SCRATCH: Final = ".spare-partial"
"""Name of the folders in which unfinished local files lie; no key may have it as a segment."""
LONGEST_KEY: Final = 1024
"""Bytes; the limit of S3."""
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ALLOWED: Final = "give s3://bucket, s3://bucket/prefix or the absolute path of a local folder"


def is_s3(source: str | Path) -> bool:
    """Whether ``source`` is meant as an address in S3."""
    return str(source)[:5].lower() == "s3://"


class S3Address(NamedTuple):
    """A bucket and a prefix in it, "" or without slashes at its ends."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        """The address as people write it."""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def key(self, key: str) -> str:
        """The whole key in the bucket of a key under the prefix."""
        return "/".join(part for part in (self.prefix, key) if part)


def parse(uri: str) -> S3Address | str:
    """An S3 address, or the absolute path of a local folder.

    Raises:
        SettingsError: if it is neither, or a part of it is malformed.
    """
    if is_s3(uri):
        return parse_s3(uri)
    if not Path(uri).is_absolute() or "\0" in uri:
        raise SettingsError([f"store {_shown(uri)} is no address of a store: {_ALLOWED}"])
    return str(Path(uri))


def parse_s3(uri: str) -> S3Address:
    """The bucket and prefix of an ``s3://`` address.

    Raises:
        SettingsError: if the bucket's name or the prefix is malformed.
    """
    bucket, _, prefix = uri[5:].partition("/")
    if not is_s3(uri) or not _BUCKET.fullmatch(bucket):
        raise SettingsError(
            [f"{_shown(uri)} names no bucket (3 to 63 of a-z, 0-9, '.', '-'; no credentials, no port): {_ALLOWED}"]
        )
    prefix = prefix.rstrip("/")
    if prefix:
        check_key(prefix)
    return S3Address(bucket, prefix)


def check_key(key: str) -> str:
    """``key``, if it is one: relative, with "/" between segments, none of them empty, "." or "..".

    Raises:
        SettingsError: saying what is wrong with it. Keys are data: they may come from a takedown list or a listing.
    """
    problem = _key_problem(key)
    if problem:
        raise SettingsError([f"key {_shown(key)} {problem}; keys are relative paths such as 'requests/list.csv'"])
    return key


def check_prefix(prefix: str) -> str:
    """A folder's prefix without its last slash; "" is the whole store.

    Raises:
        SettingsError: see :func:`check_key`.
    """
    return check_key(prefix.removesuffix("/")) if prefix else ""


def _key_problem(key: str) -> str | None:
    segments = key.split("/")
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        return "is not Unicode text"
    if length > LONGEST_KEY:
        return f"has {length} bytes, at most {LONGEST_KEY} are allowed"
    if "" in segments:
        return "is empty, absolute, or has an empty segment"
    if {".", ".."} & set(segments):
        return "has a '.' or '..' segment"
    if SCRATCH in segments:
        return f"has the segment {SCRATCH!r}, which is reserved"
    if any(unicodedata.category(letter) == "Cc" for letter in key):
        return "has a control character"
    return None


def _shown(text: str) -> str:
    """``text`` for a message: short, escaped, and of an address not what is before an "@", which may be a password."""
    scheme, separator, rest = text.partition("://")
    if separator and "@" in rest:
        text = f"{scheme}://…@{rest.rpartition('@')[2]}"
    return repr(text if len(text) <= 120 else f"{text[:120]}…")
