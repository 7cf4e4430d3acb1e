"""Results of an attack on disk: the report, what is done so far, and, apart from both, what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from spare_core.errors import OutputError
from spare_core.files.atomic import write_bytes, write_json, write_tensors
from spare_core.files.output import check_output
from spare_core.runs.generate import png

SCHEMA: Final = "spare.attack/2"
REPORT: Final = "attack.json"
FOUND: Final = "found"
"""Folder of what attacks have found, which only its owner may read: whoever has it has the concept back."""
_DONE: Final = "done.jsonl"


def check_attack_output(output: Path) -> None:
    """Refuse a folder that holds anything but an attack's results, finished or not.

    Raises:
        OutputError: naming what is in the way.
    """
    begun = (output / _DONE).is_file()
    names = (REPORT, FOUND, _DONE) if begun else ()
    check_output(output, "attack", lambda path: path.name in names or path.suffix == ".partial")


class Record:
    """What is done of an attack, a line each as soon as it is done, in the folder of its report.

    Raises:
        OutputError: at construction, if the folder holds another attack's results or anything else.
    """

    def __init__(self, output: Path, facts: dict[str, Any]) -> None:
        self.output, self._lines = output, output / _DONE
        asked = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        check_attack_output(output)
        self._done: dict[str, Any] = {}
        if self._lines.is_file():
            # A line that a kill has cut off has no end.
            first, *others = self._lines.read_text(encoding="utf-8").split("\n")[:-1] or [""]
            if first != asked:
                raise OutputError(
                    f"{output} holds an attack with other settings, adapters or versions; give another --output"
                )
            self._done = dict(json.loads(line) for line in others)
        output.mkdir(parents=True, exist_ok=True)
        (output / FOUND).mkdir(mode=0o700, exist_ok=True)
        lines = [asked, *(json.dumps(item) for item in self._done.items())]
        write_bytes(self._lines, "".join(f"{line}\n" for line in lines).encode())

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work`` returned, done now or in an earlier run."""
        if name not in self._done:
            self._done[name] = work()
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, self._done[name]]) + "\n")
        return self._done[name]

    def keep_tensors(self, name: str, found: Mapping[str, Tensor]) -> str:
        """Store what an attack has found; only the owner may read it. Returns where, below the folder."""
        return self._keep(self.output / FOUND / f"{name}.safetensors", lambda path: write_tensors(path, found))

    def keep_json(self, name: str, found: Mapping[str, Any]) -> str:
        """The same of what is no tensor."""
        return self._keep(self.output / FOUND / f"{name}.json", lambda path: write_json(path, found))

    def keep_picture(self, name: str, picture: Tensor) -> str:
        """The same of a picture, RGB ``(3, H, W)`` in [0, 1]."""
        return self._keep(self.output / FOUND / f"{name}.png", lambda path: write_bytes(path, png(picture)))

    def _keep(self, path: Path, write: Callable[[Path], None]) -> str:
        write(path)
        path.chmod(0o600)
        return f"{FOUND}/{path.name}"

    def finish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Write the report."""
        write_json(self.output / REPORT, report)
        return report
