"""A page shows a result by itself, and what people wrote is text in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spare_core.canvas.judge import GridJudge
from spare_core.evaluation.evaluate import evaluate
from spare_core.evaluation.html import evaluation_page, profile_page
from spare_core.models.unet import UNetDenoiser
from tests.support.grids import small_suite


class Page(HTMLParser):
    """What a browser would see: tags, text, and every address."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(denoiser: UNetDenoiser, judge: GridJudge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the base alone."""
    output = tmp_path_factory.mktemp("page") / "evaluation"
    evaluate(denoiser, denoiser.files.digest(), [], small_suite(), ["Neon Lines"], "style", output, judge)
    return output


def test_an_evaluation_is_one_page_with_its_pictures_inside(folder: Path) -> None:
    page = Page(evaluation_page(folder))
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert page.tags.count("tr") == 1 + len(json.loads((folder / "evaluation.json").read_text())["per_concept"])
    assert "suppressed as measured by the judge 'canvas'" in page.text
    assert "UA" in page.text


def test_a_name_that_looks_like_html_is_text(folder: Path, tmp_path: Path) -> None:
    report = json.loads((folder / "evaluation.json").read_text())
    evil = "<script>alert(1)</script><img src=x onerror=y>"
    report["erased"], report["per_concept"][0]["concept"] = [evil], evil
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    (tmp_path / "contact_sheet.png").write_bytes((folder / "contact_sheet.png").read_bytes())
    page = Page(evaluation_page(tmp_path))
    assert "script" not in page.tags
    assert page.text.count(evil) >= 2


def test_a_profile_is_a_page_with_its_plot(folder: Path) -> None:
    content = profile_page("<b>Neon</b>", {"edges": [0, 500, 1000], "gap": [0.1, 0.2], "probabilities": [0.4, 0.6]})
    page = Page(content)
    assert "b" not in page.tags
    assert len(page.addresses) == 1
    assert re.match(r"data:image/png;base64,iVBOR", page.addresses[0])
