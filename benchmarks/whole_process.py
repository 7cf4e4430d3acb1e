"""One ``spare erase canvas`` in a process of its own, from start to exit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """Seconds, the most memory in bytes, and what ``spare.json`` says."""

    seconds: float
    peak: int
    manifest: dict[str, Any]


def erase_cat(output: Path, *arguments: str) -> Run:
    """Cat, with Dog as its surrogate.

    Raises:
        SystemExit: if it fails, with the command to see why.
    """
    command = ["spare", "erase", "canvas", "--erase", "Cat", "--surrogate", "Dog", "--output", str(output), *arguments]
    counts = output.with_name(f"{output.name}.json")
    counted = [sys.executable, str(Path(__file__).with_name("counted.py")), str(counts), *command]
    started = time.perf_counter()
    status = subprocess.run(counted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed; run it by hand")
    peak = json.loads(counts.read_text())["peak"]
    return Run(seconds, peak, json.loads((output / "spare.json").read_text()))
