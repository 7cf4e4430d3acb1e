"""The JSON Schema of takedown lists, for editors that complete and check: ``python -m spare_core.takedown.schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from spare_core.takedown.request import SCHEMA, TakedownRequest

FILE: Final = Path(__file__).with_name("takedown.schema.json")


def json_schema() -> dict[str, Any]:
    """JSON schema of a YAML file: a list of requests, or a mapping with ``schema`` and that list."""
    row = TakedownRequest.model_json_schema()
    definitions = {**row.pop("$defs"), "request": row}
    rows = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/request"}}
    named = {
        "type": "object", "required": ["schema", "requests"], "additionalProperties": False,
        "properties": {"schema": {"const": SCHEMA}, "requests": rows},
    }  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, "anyOf": [rows, named],
        "$defs": definitions,
    }  # fmt: skip


def written() -> str:
    """The file's content."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
