"""A store in a local folder, as conditional as S3: a file appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from spare_core.errors import ObjectDenied, ObjectExists, ObjectMissing, ObjectTooLarge, StoreError
from spare_core.files.addresses import SCRATCH, check_key, check_prefix
from spare_core.store.base import Entry, OnBytes, Store, files_of, no_progress, sha256
from spare_core.store.disk import disk_errors


class FolderStore(Store):
    """See :class:`Store`. Needs a file system with hard links: linking is what refuses to overwrite."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._root = Path(uri)

    def check(self) -> None:
        """See :meth:`Store.check`."""
        if not self._root.is_dir():
            raise ObjectMissing(f"there is no folder {self.uri}; make it (mkdir -p) or give another store")
        if not os.access(self._root, os.R_OK | os.X_OK):
            raise ObjectDenied(f"the folder {self.uri} may not be read by this user")

    def read(self, key: str, most: int | None = None) -> bytes:
        """See :meth:`Store.read`."""
        if not self.exists(key):
            raise ObjectMissing(f"there is no {self.uri_of(key)}")
        with self._translated(key):
            if most is not None and (size := self._path(key).stat().st_size) > most:
                raise ObjectTooLarge(f"{self.uri_of(key)} has {size} bytes; at most {most} are read")
            return self._path(key).read_bytes()

    def create(self, key: str, content: bytes) -> None:
        """See :meth:`Store.create`."""
        self._link(key, content)

    def exists(self, key: str) -> bool:
        """See :meth:`Store.exists`."""
        return self._path(key).is_file()

    def entries(self, prefix: str) -> list[Entry]:
        """See :meth:`Store.entries`."""
        folder = self._root / check_prefix(prefix)
        found = []
        for path in folder.rglob("*"):
            key = path.relative_to(self._root)
            if path.is_file() and SCRATCH not in key.parts:
                status = path.stat()
                found.append(Entry(key.as_posix(), status.st_size, f"{status.st_ino}-{status.st_mtime_ns}"))
        return sorted(found)

    def upload(self, folder: Path, prefix: str, on_progress: OnBytes = no_progress) -> None:
        """See :meth:`Store.upload`."""
        files = files_of(folder)
        done, total = 0, sum(path.stat().st_size for path in files.values())
        on_progress(0, total)
        for name, path in files.items():
            key = "/".join(part for part in (check_prefix(prefix), name) if part)
            with contextlib.suppress(ObjectExists):
                self._link(key, path)
            if sha256(self._path(key)) != sha256(path):
                raise ObjectExists(f"{self.uri_of(key)} is there already with other content; nothing was overwritten")
            done += path.stat().st_size
            on_progress(done, total)

    def download(self, prefix: str, folder: Path, on_progress: OnBytes = no_progress) -> None:
        """See :meth:`Store.download`."""
        entries = self.entries(prefix)
        if not entries:
            raise ObjectMissing(f"there is nothing under {self.uri_of(prefix)}")
        done, total = 0, sum(entry.size for entry in entries)
        on_progress(0, total)
        scratch = folder / SCRATCH / uuid.uuid4().hex
        with disk_errors(folder):
            scratch.parent.mkdir(parents=True, exist_ok=True)
            for entry in entries:
                target = folder / Path(entry.key).relative_to(check_prefix(prefix))
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._translated(entry.key):
                    source = self._path(entry.key).open("rb")
                with source, scratch.open("wb") as file:
                    shutil.copyfileobj(source, file)
                scratch.replace(target)
                done += entry.size
                on_progress(done, total)
            shutil.rmtree(scratch.parent)

    def _put(self, key: str, content: bytes | Path, digest: str) -> None:
        if not self.exists(key):
            with contextlib.suppress(ObjectExists):
                self._link(key, content)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _link(self, key: str, content: bytes | Path) -> None:
        """Write under a temporary name, then link: the link fails if the name is taken."""
        target = self._path(key)
        scratch = self._root / SCRATCH
        temporary = scratch / uuid.uuid4().hex
        with self._translated(key):
            scratch.mkdir(parents=True, exist_ok=True)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise NotADirectoryError(errno.ENOTDIR, "a part of the key is an object itself") from None
            try:
                if isinstance(content, bytes):
                    temporary.write_bytes(content)
                else:
                    shutil.copyfile(content, temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise ObjectExists(f"{self.uri_of(key)} is there already; nothing was overwritten") from None
        except FileNotFoundError:
            raise ObjectMissing(f"there is no {self.uri_of(key)}") from None
        except PermissionError:
            raise ObjectDenied(f"{self.uri_of(key)}: the file system does not allow it for this user") from None
        except OSError as error:
            raise StoreError(f"{self.uri_of(key)}: {error.strerror or error}") from None
