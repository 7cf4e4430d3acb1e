"""The interface of a store."""

from __future__ import annotations

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from spare_core.errors import InputError, ObjectExists, StoreError
from spare_core.files.addresses import check_key

WORKERS: Final = 10
"""Requests at once."""
PART: Final = 8 * 2**20
"""Bytes sent or asked for in one request; also what a killed download may lose of each part it was reading."""
_PROBE: Final = "conditional-create"
OnBytes = Callable[[int, int], None]
"""Called with the bytes done and the bytes there are, never backwards; from one thread at a time."""


def no_progress(done: int, total: int) -> None:
    """The default: tell nobody."""


class Entry(NamedTuple):
    """One object of a listing: its key, its size in bytes, and the tag that changes when its content does."""

    key: str
    size: int
    etag: str


class Store(ABC):
    """Immutable objects by key under one address.

    Keys are POSIX relative paths, see :func:`spare_core.files.addresses.check_key`; each method raises SettingsError
    for one that is not. A prefix is a folder: "a/b" and "a/b/" both mean what lies under "a/b/", and "" everything.

    Every method may raise :class:`StoreUnavailable` (after a bounded number of retries) and :class:`ObjectDenied`.
    """

    uri: str
    """"s3://bucket/prefix" or an absolute local folder."""

    def uri_of(self, key: str) -> str:
        """The address of one object, for people and for messages."""
        return f"{self.uri.rstrip('/')}/{key}"

    @abstractmethod
    def check(self) -> None:
        """Nothing, if the store can be reached and listed; answers or fails in under ten seconds.

        Raises:
            ObjectMissing: if there is no such bucket or folder.
        """

    def skew(self) -> float:
        """By how many seconds this machine's clock is ahead of the store's, to a second; 0 of a folder, which has none.

        Raises:
            StoreError: if it does not answer.
        """
        return 0.0

    def check_create(self) -> None:
        """Nothing, if a create refuses to replace what is there, which all that is decided here rests on.

        Some servers that speak S3's API take a conditional request and overwrite all the same. Leaves the object
        ``conditional-create`` behind.

        Raises:
            StoreError: if this is one of them.
        """
        with suppress(ObjectExists):
            self.create(_PROBE, b"SPARE tries here whether this storage refuses to overwrite.\n")
        with suppress(ObjectExists):
            self.create(_PROBE, f"It overwrites: {uuid.uuid4().hex}.\n".encode())
            raise StoreError(
                f"{self.uri_of(_PROBE)} was overwritten: this storage does not honour If-None-Match, so two that "
                "decide at once would both win; use one that does, such as S3, MinIO, Ceph or R2"
            )

    @abstractmethod
    def read(self, key: str, most: int | None = None) -> bytes:
        """An object's bytes.

        Raises:
            ObjectMissing: if there is none.
            ObjectTooLarge: if there are more than ``most``; before any is read.
            ObjectChanged: if it keeps changing while it is read, or its bytes are not those its checksum names.
        """

    @abstractmethod
    def create(self, key: str, content: bytes) -> None:
        """Create an object if there is none of that name: of any number of callers at once, one succeeds.

        Where an answer was lost and the request sent again, equal bytes in the store count as ours; so callers who may
        race with equal bytes put a nonce in.

        Raises:
            ObjectExists: if there is one already.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object of that name."""

    @abstractmethod
    def entries(self, prefix: str) -> list[Entry]:
        """All objects of a folder, by key."""

    @abstractmethod
    def upload(self, folder: Path, prefix: str, on_progress: OnBytes = no_progress) -> None:
        """Send every file of a local folder; overwrites nothing, and skips what is there with equal content.

        Each file is visible under its name only when it is whole. Run again after it was killed, it goes on.

        Raises:
            ObjectExists: if an object with other content has the name of one of the files.
            InputError: if the folder is missing or empty, or holds what is no file.
        """

    @abstractmethod
    def download(self, prefix: str, folder: Path, on_progress: OnBytes = no_progress) -> None:
        """Fetch a folder's objects; each file is visible under its name only when it is whole and verified.

        Run again after it was killed, it goes on where it stopped, in the middle of a file too.

        Raises:
            ObjectMissing: if there is nothing under ``prefix``.
            ObjectChanged: if objects keep changing while they are read, or fail their checksum.
            StorageError: if the disk would not take a file.
        """

    @abstractmethod
    def _put(self, key: str, content: bytes | Path, digest: str) -> None:
        """Create ``key`` unless it is there; ``digest`` is the content's sha256."""

    def list(self, prefix: str) -> list[str]:
        """The sorted keys of all objects of a folder."""
        return [entry.key for entry in self.entries(prefix)]

    def put_content(self, content: bytes | Path, prefix: str, suffix: str = "") -> str:
        """Store bytes or a file under the key "prefix/<sha256><suffix>", which is returned.

        Nothing is sent when it is there already: the same content has the same key.
        """
        digest = sha256(content)
        key = "/".join(part for part in (prefix.removesuffix("/"), digest + suffix) if part)
        self._put(key, content, digest)
        return key


def sha256(content: bytes | Path) -> str:
    """The digest of bytes or of a file, in hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their POSIX relative name; symbolic links to files are followed.

    Raises:
        InputError: if the folder is missing or empty, or holds what is no file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder to upload")
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[check_key(path.relative_to(folder).as_posix())] = path
        elif not path.is_dir():
            raise InputError(f"{path} is neither a file nor a folder (a broken link?); remove it, then upload again")
    if not files:
        raise InputError(f"{folder} holds no files to upload")
    return files
