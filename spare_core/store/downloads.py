"""Many objects to a local folder: in parallel, in ranges that must all be of one ETag, resumed and verified.

boto3's own transfers neither resume nor check a whole file against its checksum, hence these.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from spare_core.errors import ObjectChanged, ObjectMissing, SettingsError, StorageError, StoreError, StoreUnavailable
from spare_core.files.addresses import SCRATCH, check_key
from spare_core.store.base import WORKERS, Entry, OnBytes
from spare_core.store.checksums import verdict
from spare_core.store.disk import disk_errors, exclusive
from spare_core.store.failures import BODY_ERRORS, pauses, translated
from spare_core.store.partial import PartialFile
from spare_core.store.progress import ByteCounter

if TYPE_CHECKING:
    from spare_core.store.s3 import S3Store

_ROUNDS: Final = 3
_CHUNK: Final = 256 * 2**10
_Result = TypeVar("_Result")


def until_unchanged(attempt: Callable[[], _Result]) -> _Result:
    """Repeat ``attempt``, which starts with a listing, while objects change under it; three times at most."""
    for pause, _ in zip(pauses(), range(_ROUNDS - 1), strict=False):
        try:
            return attempt()
        except ObjectChanged:
            time.sleep(pause)
    return attempt()


def download(store: S3Store, found: Mapping[str, Entry], folder: Path, on_progress: OnBytes) -> None:
    """Fetch each listed object to its name under ``folder``.

    Raises:
        ObjectChanged: if one is no longer what the listing says, or fails its checksum; what was fetched stays.
        StorageError: if the disk would not take a file.
    """
    _check_names(store, found)
    scratch = folder / SCRATCH
    with disk_errors(folder), exclusive(scratch / "lock"):
        _Download(store, found, folder, ByteCounter(sum(e.size for e in found.values()), on_progress)).run()
        shutil.rmtree(scratch)


class _Download:
    def __init__(self, store: S3Store, found: Mapping[str, Entry], folder: Path, counter: ByteCounter) -> None:
        self.store, self.found, self.folder, self.counter = store, found, folder, counter
        self.scratch = folder / SCRATCH
        self.journal = _Journal(self.scratch / "finished.jsonl")
        self.stop = threading.Event()

    def run(self) -> None:
        finished = self.journal.read()
        files = []
        for name, entry in self.found.items():
            target = self.folder / name
            if finished.get(name) == [entry.etag, entry.size] and target.is_file():
                self.counter.add(entry.size)
            else:
                files.append((name, PartialFile(self.scratch, target, entry)))
        needed = sum(stop - start for _, file in files for start, stop in file.missing())
        free = shutil.disk_usage(self.scratch).free
        if needed > free:
            raise StorageError(
                f"{self.folder} has {free >> 20} MiB free, the download needs {needed >> 20} MiB; make room or give "
                "another folder (SPARE_CACHE names that of the cache)"
            )
        self.counter.add(sum(file.entry.size for _, file in files) - needed)
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="download")
        try:
            # A file without missing parts still has to be verified and shown.
            tasks = [
                pool.submit(self._part, name, file, start, stop)
                for name, file in files
                for start, stop in file.missing() or [(0, 0)]
            ]
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            self.stop.set()
            pool.shutdown(cancel_futures=True)

    def _part(self, name: str, file: PartialFile, start: int, stop: int) -> None:
        answer: Mapping[str, Any] = {}
        if stop > start:
            answer = self._read(file, start, stop)
        if file.settle(start):
            self._verify(file, answer)
            file.finish()
            self.journal.add(name, file.entry)

    def _read(self, file: PartialFile, start: int, stop: int) -> Mapping[str, Any]:
        """Get the bytes of one part; a body that ends early is continued where it ended."""
        uri = self.store.uri_of(file.entry.key)
        patience, reached, last = pauses(), start, "its body was too short"
        while True:
            answer = self._get(file, start, stop)
            try:
                for chunk in answer["Body"].iter_chunks(_CHUNK):
                    if self.stop.is_set():
                        raise _StoppedError
                    if len(chunk) > stop - start:
                        raise StoreError(f"{uri}: {self.store.host} sent more than the range that was asked for")
                    file.write(start, chunk)
                    start += len(chunk)
                    self.counter.add(len(chunk))
            except BODY_ERRORS as error:
                last = type(error).__name__
            finally:
                answer["Body"].close()
            if start == stop:
                return answer
            if start - reached >= _CHUNK:  # it does get on, if slowly
                patience, reached = pauses(), start
            pause = next(patience, None)
            if pause is None:
                raise StoreUnavailable(
                    f"{uri}: {self.store.host} broke off at byte {start} in every one of several tries ({last}); run "
                    "it again to go on from there"
                )
            if self.stop.wait(pause):
                raise _StoppedError

    def _get(self, file: PartialFile, start: int, stop: int) -> dict[str, Any]:
        entry, uri = file.entry, self.store.uri_of(file.entry.key)
        request = {"Bucket": self.store.bucket, "Key": self.store.whole_key(entry.key), "IfMatch": entry.etag}
        whole = (start, stop) == (0, entry.size)
        if not whole:
            request["Range"] = f"bytes={start}-{stop - 1}"
        try:
            with translated(uri, self.store.client):
                answer: dict[str, Any] = self.store.client.get_object(**request)
        except ObjectMissing:
            raise ObjectChanged(f"{uri}: it was deleted while it was read; try again") from None
        if answer["ETag"] != entry.etag:
            raise ObjectChanged(f"{uri}: it became another object while it was read; try again")
        if not whole and not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
            raise StoreError(f"{uri}: {self.store.host} does not answer requests for a range")
        return answer

    def _verify(self, file: PartialFile, answer: Mapping[str, Any]) -> None:
        """Compare the whole file with the checksum that came with it, or that the storage knows; there may be none."""
        entry, uri = file.entry, self.store.uri_of(file.entry.key)
        good = not entry.size or (file.is_complete() and verdict(answer, file.data))
        if good is None:
            described = self.store.head(entry.key)
            if described is None or described["ETag"] != entry.etag:
                raise ObjectChanged(f"{uri}: it became another object while it was read; try again")
            good = verdict(described, file.data)
        if good is False:
            file.discard()
            raise ObjectChanged(f"{uri}: its bytes are not those its checksum names; it is damaged, upload it again")


class _StoppedError(Exception):
    """Another part failed; this one need not go on."""


class _Journal:
    """Which objects are under their names, for the next process if this one is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def add(self, name: str, entry: Entry) -> None:
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, entry.etag, entry.size]) + "\n")

    def read(self) -> dict[str, list[Any]]:
        """ETag and size by name; a line that was cut off by the kill is left out."""
        if not self._path.exists():
            return {}
        finished = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                name, etag, size = json.loads(line)
                finished[name] = [etag, size]
        return finished


def _check_names(store: S3Store, found: Mapping[str, Entry]) -> None:
    """Names in a listing are data: none may lead out of the folder, or be a file and a folder at once."""
    for name, entry in found.items():
        try:
            check_key(name)
        except SettingsError as error:
            raise StoreError(f"{store.uri} holds an object that cannot be a local file: {error}") from None
        parents = {"/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)}
        if not parents.isdisjoint(found):
            raise StoreError(f"{store.uri_of(entry.key)} lies under a key that is an object itself; rename one of them")
