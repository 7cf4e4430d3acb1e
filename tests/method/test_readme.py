"""The page that tells the method names code and tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "spare_core" / "method" / "README.md"


def test_every_equation_has_a_function_and_a_test_of_that_name() -> None:
    text = PAGE.read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "spare_core").rglob("*.py"))
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    names = set(re.findall(r"`(test_\w+)`", text))
    assert len(names) > 10
    assert not {name for name in names if f"def {name}(" not in tests}
    functions = {name.rpartition(".")[2] for name in re.findall(r"`([A-Za-z_.]+)`", text) if "/" not in name} - names
    assert not {name for name in functions if not re.search(rf"(def|class) {name}\b", code) and name != "py"}


def test_every_module_of_the_method_is_on_the_page() -> None:
    told = set(re.findall(r"\]\((\w+\.py)\)", PAGE.read_text(encoding="utf-8")))
    modules = {path.name for path in PAGE.parent.glob("*.py")} - {"__init__.py", "prompt_table.py"}
    assert told == modules


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8")):
        assert link.startswith("http") or (PAGE.parent / link).exists() or "docs/" in link, link
