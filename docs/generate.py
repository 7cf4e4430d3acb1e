"""Pages of docs/reference made from the code: ``python -m docs.generate`` writes them, a test compares them."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

from typer.cli import get_docs_for_click
from typer.main import get_command

import spare_core.errors
from spare_core.evaluation.gate import POLICIES, Policy
from spare_core.method.settings import EraseSettings
from spare_core.models.checkpoint.layout import NO_MODELS
from spare_core.models.digest import ARCHITECTURES, WANTED
from spare_core.models.promises import rules
from spare_core.takedown.reading import READERS
from spare_core.takedown.request import TakedownRequest

REFERENCE = Path(__file__).parent / "reference"
_MADE = "<!-- Made by `python -m docs.generate`; do not edit. -->\n\n"


def pages() -> dict[str, str]:
    """The content of each page by its name."""
    return {
        "cli.md": _cli(), "settings.md": _settings(), "exit-codes.md": _exit_codes(),
        "input-fields.md": _input_fields(),
    }  # fmt: skip


def _cli() -> str:
    from spare_core.cli.root import app

    command: Any = get_command(app)
    context: Any = command.make_context("spare", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="spare", title="Commands")
    lines = [line.rstrip() for line in text.splitlines()]
    return _MADE + "\n".join(lines).strip() + "\n"


def _settings() -> str:
    text = (
        f"{_MADE}# Settings\n\nOf an erasure: a YAML file for `--config`, the `settings` of a pipeline, or "
        "`EraseSettings(…)` in Python. A setting that would be ignored is refused.\n\n"
        "| setting | default | allowed | meaning |\n|---|---|---|---|\n"
    )
    text += "".join(_row(EraseSettings, field, str(field.default)) for field in dataclasses.fields(EraseSettings))
    text += (
        "\n# Policy\n\nWhat the gate asks for: a YAML file for `policy` or `--policy` that names every threshold. "
        "Two come along, by name, and give a reason for each value: "
        + " and ".join(f"`{name}` (`spare_core/evaluation/policies/{name}.yaml`)" for name in POLICIES)
        + f".\n\n| threshold | {' | '.join(POLICIES)} | allowed | meaning |\n|{'---|' * (len(POLICIES) + 3)}\n"
    )
    known = [Policy.find(name) for name in POLICIES]
    return text + "".join(
        _row(Policy, field, " | ".join(str(getattr(one, field.name)) for one in known))
        for field in dataclasses.fields(Policy)
    )


def _input_fields() -> str:
    """What is checked of what people bring, from the lists that it is checked by."""
    known = ", ".join(f"`{name}` ({', '.join(parts)})" for name, parts in ARCHITECTURES.items())
    text = (
        f"{_MADE}# What inputs may say\n\nThe lists that inputs are checked by; [what people have](inputs.md) says "
        f"more of each.\n\n## Models\n\nPipelines, and the parts whose weights name them: {known}. Fetched from a hub "
        f"or from S3: {', '.join(f'`{pattern}`' for pattern in WANTED)}, of one variant of weights.\n\n"
        "| file | field | understood | |\n|---|---|---|---|\n"
    )
    text += "".join(f"| `{file}` | `{field}` | {allowed} | {why} |\n" for file, field, allowed, why in rules())
    text += "\n## Files of one model that are none\n\n| a name in it holds | it is |\n|---|---|\n"
    text += "".join(f"| {', '.join(f'`{one}`' for one in signs)} | {what} |\n" for signs, what in NO_MODELS)
    fields = ", ".join(f"`{name}`" for name in TakedownRequest.model_fields)
    text += (
        f"\n## Takedown lists\n\nBy their names: {', '.join(f'`{suffix}`' for suffix in READERS)}. Fields: {fields}.\n"
    )
    return text


def _row(owner: type, field: dataclasses.Field[Any], value: str) -> str:
    hint = typing.get_type_hints(owner)[field.name]
    meta = field.metadata
    if typing.get_origin(hint) is Literal:
        allowed = ", ".join(typing.get_args(hint))
    elif meta.get("low") is not None:
        allowed = f"{'(' if meta['open_low'] else '['}{meta['low']:g}, {meta['high']:g}]"
        allowed += ", or auto" if field.name == "lr" else ""
    else:
        allowed = "true, false" if hint is bool else "a mapping"
    only = meta.get("only")
    needs = f" (only with {only.setting} {only.allowed})" if only else ""
    meaning = meta["meaning"].replace("|", "\\|")
    return f"| `{field.name}` | {value} | {allowed} | {meaning}{needs} |\n"


def _exit_codes() -> str:
    assert spare_core.errors.__doc__
    tree = spare_core.errors.__doc__.partition("::\n\n")[2].partition("\n\nA message")[0]
    codes = {
        "0": "done",
        "1": "it failed: a service, a storage, a numerical failure; or a monitor found something late or out of order",
        "2": "bad input: nothing was started",
        "3": "the gate refused",
        "130": "stopped by Ctrl-C",
    }
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in codes.items())
    raised = "Every error that SPARE raises on purpose, and its code:"
    return f"{_MADE}# Exit codes\n\n| code | means |\n|---|---|\n{rows}\n{raised}\n\n```\n{tree.strip(chr(10))}\n```\n"


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
