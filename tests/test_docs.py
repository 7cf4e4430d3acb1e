"""The documentation says what is: pages made from the code are as made, links lead somewhere, commands exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from docs.generate import REFERENCE, pages
from spare_core.cli.root import app

ROOT = Path(__file__).parents[1]
WRITTEN = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
WRITTEN += sorted((ROOT / "docs").rglob("*.md"))
WRITTEN += [ROOT / name for name in ("spare_core/method/README.md", "serving/README.md", "examples/README.md")]


def anchors(page: Path) -> set[str]:
    """What headings are linked to by, as GitHub and MkDocs make it."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``spare`` command that a page shows, with the page."""
    for page in WRITTEN:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("spare "):
                    yield page.name, shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("name", ["cli.md", "settings.md", "exit-codes.md", "input-fields.md"])
def test_pages_made_from_the_code_are_as_made(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == pages()[name], "run `make docs`"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if "docs" in page.relative_to(ROOT).parts[:1]:
            assert target.is_relative_to(ROOT / "docs"), f"{link} leads out of the site"
        if anchor:
            assert anchor in anchors(target), link


def refusal(words: list[str]) -> str:
    """Why the command line would not take these words; empty if it does. Nothing is run."""
    command: Any = get_command(app)
    context = command.make_context("spare", [], resilient_parsing=True)
    while hasattr(command, "commands") and words:
        if words[0] not in command.commands:
            return "" if words[0] in ("--version", "--help") else f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
        context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
    context.resilient_parsing = False
    try:
        command.make_parser(context).parse_args(list(words))
    except Exception as error:  # of whichever click typer brings along
        return str(error)
    return ""


def test_every_command_that_is_shown_can_be_given() -> None:
    shown = list(commands())
    assert len(shown) > 20
    assert {f"{page}: spare {shlex.join(words)}: {why}" for page, words in shown if (why := refusal(words))} == set()
    assert "stpes" in refusal(["erase", "canvas", "--stpes", "3"])
    assert "erease" in refusal(["erease", "canvas"])


def test_the_readme_is_a_front_door() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert lines.index("## Erase from your model") < 20


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A style erased with the defaults: little is left of it, nothing that is kept moves by a tenth of the gap."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "docs" / "explanation" / "method.md", "python")
    exec(compile(code, "method.md", "exec"), {})
    manifest = json.loads((tmp_path / "out" / "neon" / "spare.json").read_text())
    assert manifest["concept"] == "Neon Lines"
    assert manifest["residual"] < 0.1
    assert max(manifest["drift"].values()) < 0.1
    assert manifest["unnamed_drift"] < 0.1
    assert set(manifest["drift"]) > {"Pencil Drawing", "(empty prompt)"}
