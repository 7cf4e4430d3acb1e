"""A run's unfinished state in ``OUTPUT/.checkpoint``: what a killed ``spare erase`` goes on from.

A folder for each stage's result, as the stages write them, and ``request.json``, which says what was asked, so a
checkpoint is never continued with other settings. It is locked while a process works in it and removed when the adapter
is written.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from spare_core.adapters.manifest import MANIFEST, check_file, read_manifest
from spare_core.errors import InputError, OutputError, StorageError, TrainingError
from spare_core.files.atomic import write_json

FOLDER: Final = ".checkpoint"
REQUEST: Final = "request.json"


def check_run_output(output: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Decide what an output folder is to a request: new (None), unfinished (None), or finished (its manifest).

    Raises:
        OutputError: if it holds anything that is not this request's.
    """
    if not output.exists():
        return None
    if not output.is_dir():
        raise OutputError(f"{output} is a file; give a folder for --output")
    if (output / MANIFEST).is_file():
        manifest = read_manifest(output)
        _compare(output, manifest.get("request"), request, "the finished adapter of another request")
        for name, facts in manifest["files"].items():
            check_file(output / name, facts["sha256"])
        shutil.rmtree(output / FOLDER, ignore_errors=True)  # of a run that was killed after writing its adapter
        return manifest
    if (output / FOLDER / REQUEST).is_file():
        _compare(output, _stored(output / FOLDER), request, "an unfinished run of another request")
        return None
    if any(file.name != FOLDER for file in output.iterdir()):
        raise OutputError(f"{output} exists and is not ours (it has no {MANIFEST}); give a new or empty --output")
    return None


def _stored(folder: Path) -> Any:
    return json.loads((folder / REQUEST).read_text(encoding="utf-8"))


def _compare(output: Path, stored: Any, request: dict[str, Any], what: str) -> None:
    if stored == request:
        return
    old = stored if isinstance(stored, dict) else {}
    differing = sorted(key for key in request if old.get(key) != request[key])
    named = ", ".join(f"{key} {old.get(key)!r} there, {request[key]!r} now" for key in differing[:3])
    raise OutputError(f"{output} holds {what} ({named}); give another --output or delete that folder")


class Checkpoint:
    """The folder, locked for this process."""

    def __init__(self, output: Path, request: dict[str, Any]) -> None:
        self.folder = output / FOLDER
        self._created = [path for path in (self.folder, output) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise StorageError(f"cannot write to {output}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another process is working in {output}; wait for it or give another --output") from None
        if (self.folder / REQUEST).exists():  # another process may have come and gone since check_run_output
            _compare(output, _stored(self.folder), request, "an unfinished run of another request")
        else:
            try:
                write_json(self.folder / REQUEST, request)
            except StorageError:
                self.abandon_if_empty()
                raise

    def __enter__(self) -> Path:
        """The folder to work in. What is left of it afterwards depends on how the work ended."""
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.remove()
        elif isinstance(error, InputError | TrainingError):
            self.discard()  # these come again with every try: a checkpoint would only stand in the next one's way
        else:
            self.abandon_if_empty()

    def abandon_if_empty(self) -> None:
        """Leave nothing behind where nothing was worth keeping."""
        if any(self.folder.rglob("*.safetensors")):
            self._lock.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self._created[1:]:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def remove(self) -> None:
        """The run is finished."""
        self._lock.close()
        shutil.rmtree(self.folder)
