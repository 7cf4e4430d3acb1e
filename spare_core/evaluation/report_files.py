"""An evaluation on disk: schema ``spare.evaluation/1``, a folder with a report and its pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from spare_core.errors import InputError
from spare_core.files.atomic import write_bytes, write_json
from spare_core.files.output import check_output

SCHEMA: Final = "spare.evaluation/1"
EVALUATION: Final = "evaluation.json"
SHEET: Final = "contact_sheet.png"
PROFILE: Final = "timesteps.png"
MATRIX: Final = "matrix.png"
PICTURES: Final = (SHEET, PROFILE, MATRIX)


def read_report(folder: Path) -> dict[str, Any]:
    """The report in an evaluation's folder.

    Raises:
        InputError: if there is none.
    """
    path = folder / EVALUATION
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no evaluation: {error}; give the folder that `spare evaluate` wrote") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise InputError(f"{path} is no evaluation of schema {SCHEMA!r}; give the folder of `spare evaluate`")
    return report


def check_report_output(output: Path) -> None:
    """Refuse a folder that holds anything but an earlier evaluation, finished or not.

    Raises:
        OutputError: naming what is in the way.
    """
    # A run that was killed while writing leaves our pictures without the report.
    finished = _is_evaluation(output)
    check_output(output, "evaluation", lambda path: finished or path.name in PICTURES or path.suffix == ".partial")


def _is_evaluation(folder: Path) -> bool:
    try:
        read_report(folder)
    except InputError:
        return False
    return True


def write_report(output: Path, report: dict[str, Any], pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Pictures first, and the report says their sha256: what a run killed in between leaves does not pass for whole."""
    for name in PICTURES:
        if name in pictures:
            write_bytes(output / name, pictures[name])
        else:
            (output / name).unlink(missing_ok=True)
    report["files"] = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in pictures.items()}
    write_json(output / EVALUATION, report)
    return report
