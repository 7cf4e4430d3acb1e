"""A file that is being downloaded, in a way that survives its process.

Its bytes lie in a scratch folder beside the target until they are whole. For a file of several parts, a record beside
them names the object's ETag and the parts that are on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

from spare_core.store.base import PART, Entry


class PartialFile:
    """The bytes of ``entry`` on their way to ``target``; safe to use from several threads."""

    def __init__(self, scratch: Path, target: Path, entry: Entry) -> None:
        self.entry, self.target = entry, target
        stem = hashlib.sha256(str(target).encode()).hexdigest()[:32]
        self.data, self._record = scratch / f"{stem}.data", scratch / f"{stem}.json"
        self._lock = threading.Lock()
        self._done = self._recorded()
        self.unsettled = max(len(self.missing()), 1)
        if not self._done:
            self.discard()

    def missing(self) -> list[tuple[int, int]]:
        """The parts to ask for, as (start, stop) in bytes."""
        starts = (start for start in range(0, self.entry.size, PART) if start not in self._done)
        return [(start, min(start + PART, self.entry.size)) for start in starts]

    def write(self, position: int, content: bytes) -> None:
        """Put bytes in their place."""
        handle = os.open(self.data, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            while content:
                written = os.pwrite(handle, content, position)
                position, content = position + written, content[written:]
        finally:
            os.close(handle)

    def settle(self, start: int) -> bool:
        """Record that the part at ``start`` is on the disk; whether it was the last one."""
        with self._lock:
            self._done.add(start)
            self.unsettled -= 1
            if self.entry.size > PART:
                self._sync()  # before the record says so
                record = {"etag": self.entry.etag, "size": self.entry.size, "part": PART, "done": sorted(self._done)}
                temporary = self._record.with_suffix(".new")
                temporary.write_text(json.dumps(record), encoding="utf-8")
                temporary.replace(self._record)
            return self.unsettled == 0

    def is_complete(self) -> bool:
        """Whether as many bytes are there as the object has."""
        return (self.data.stat().st_size if self.data.exists() else 0) == self.entry.size

    def finish(self) -> None:
        """Show the whole file under its name."""
        self._sync()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.data.replace(self.target)
        self._record.unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget what there is: it is of another object, or damaged."""
        self._record.unlink(missing_ok=True)
        self.data.unlink(missing_ok=True)

    def _sync(self) -> None:
        handle = os.open(self.data, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _recorded(self) -> set[int]:
        """The parts an earlier process got of this very object."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            same = (record["etag"], record["size"], record["part"]) == (self.entry.etag, self.entry.size, PART)
            return set(record["done"]) if same and self.data.is_file() else set()
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return set()
