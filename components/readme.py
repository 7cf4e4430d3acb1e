"""Writes each component's README.md from its docstring and signature: ``python -m components.readme``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

ROOT = Path(__file__).parent


def names() -> list[str]:
    """The components, by the name of their folder."""
    return sorted(path.parent.name for path in ROOT.glob("*/component.py"))


def component(name: str) -> Any:
    """A component as KFP sees it."""
    return getattr(importlib.import_module(f"components.{name}.component"), name)


def readme(name: str) -> str:
    """The README of a component."""
    found = component(name)
    spec = found.component_spec
    # KFP keeps the descriptions of parameters, not those of artifacts that a task writes.
    parsed = docstring_parser.parse(found.python_func.__doc__)
    said = {one.arg_name: one.description for one in parsed.params}
    said |= {"Output": parsed.returns.description} if parsed.returns else {}
    metadata = yaml.safe_load((ROOT / name / "metadata.yaml").read_text(encoding="utf-8"))
    lines = [f"# {name}", "", *_paragraphs(spec.description), ""]
    for title, channels in (("Inputs", spec.inputs or {}), ("Outputs", spec.outputs or {})):
        if channels:
            lines += [f"## {title}", "", "| name | type | what |", "|---|---|---|"]
            lines += [
                f"| `{key}` | {_type(one)} | {one.description or said.get(key, '')} |" for key, one in channels.items()
            ]
            lines.append("")
    lines += ["## Metadata", ""]
    lines += [f"- {key}: {_told(value)}" for key, value in metadata.items() if key != "name"]
    return "\n".join(
        [*lines, "", "Generated from `component.py` and `metadata.yaml` by `python -m components.readme`.", ""]
    )


def _paragraphs(description: str) -> Iterator[str]:
    """KFP joins a docstring's lines; its first one is the summary."""
    summary, _, rest = description.partition("\n")
    yield summary
    if rest.strip():
        yield ""
        yield from rest.strip().splitlines()


def _type(channel: Any) -> str:
    return str(channel.type).partition("@")[0].removeprefix("system.")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_told(inner)}" for key, inner in value.items())
    return ", ".join(map(_told, value)) if isinstance(value, list) else str(value)


def main() -> None:
    """Write them all."""
    for name in names():
        (ROOT / name / "README.md").write_text(readme(name), encoding="utf-8")


if __name__ == "__main__":
    main()
