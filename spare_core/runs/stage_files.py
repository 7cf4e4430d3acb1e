"""What a stage leaves for the next: a folder with its result and ``stage.json``, which is written last.

``stage.json`` (schema ``spare.stage/1``) says which request the result belongs to, how long it took, how much memory,
and what there is to know of it. A folder without one is unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from spare_core.errors import StageError
from spare_core.files.atomic import write_json
from spare_core.runs.request import Request

SCHEMA: Final = "spare.stage/1"
STAGE: Final = "stage.json"
BANK: Final = "bank.safetensors"
CHOOSING: Final = "probes_to_choose_by.safetensors"
REPORTING: Final = "probes_to_report.safetensors"
PROFILE: Final = "profile.json"
MASKS: Final = "masks.safetensors"
STATE: Final = "state.safetensors"


def write_stage(folder: Path, stage: str, request: Request, facts: Mapping[str, Any]) -> None:
    """Mark ``folder`` as the finished result of a stage."""
    write_json(folder / STAGE, {"schema": SCHEMA, "stage": stage, "request_sha256": request.sha256, **facts})


def read_stage(folder: Path, stage: str, request: Request) -> dict[str, Any]:
    """What the stage said of its result.

    Raises:
        StageError: if it is not finished, another stage's, or another request's.
    """
    path = folder / STAGE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = facts["schema"], facts["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"{folder} is no finished result of the stage {stage!r}: {error!r}; run that first") from None
    if found != (SCHEMA, stage):
        raise StageError(f"{folder} holds {' of stage '.join(map(str, found))}, not the result of {stage!r}")
    if facts.get("request_sha256") != request.sha256:
        raise StageError(f"{folder} holds the result of {stage!r} for another request; run {stage!r} for this one")
    return dict(facts)


def is_finished(folder: Path) -> bool:
    """Whether a stage has finished there."""
    return (folder / STAGE).is_file()
