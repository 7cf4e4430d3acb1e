"""A suite fixes every picture of a benchmark, and a file that cannot be one is refused with all its faults."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spare_core.canvas import grid
from spare_core.canvas.protocol import OBJECTS, STYLES, prompt
from spare_core.errors import ConceptError, SettingsError
from spare_core.evaluation.suite import load_suite
from tests.support.grids import small_suite

MINE = """
styles: [Neon Lines, Rust]
objects: [a cat, a dog, a tower]
seeds: [1, 2]
steps: 10
guidance: 7.5
"""


def write(folder: Path, text: str) -> str:
    """A suite file's path."""
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_canvas_is_the_protocol_that_it_was_trained_with() -> None:
    suite = load_suite("canvas")
    assert (suite.styles, suite.objects) == (STYLES, tuple(OBJECTS))
    assert suite.prompt("Cat", "Rust") == prompt("Cat", "Rust")
    assert (suite.steps, suite.guidance, suite.resolution) == (grid.STEPS, grid.GUIDANCE, grid.RESOLUTION)
    assert len(suite.cells().objects) == 20 * 12 * 5
    assert suite.judge == {"type": "canvas"}


def test_unlearncanvas_is_the_published_benchmark() -> None:
    """50 styles without Seed_Images, 20 objects, five seeds: 5,000 pictures."""
    suite = load_suite("unlearncanvas")
    assert (len(suite.styles), len(suite.objects), len(suite.cells().seeds)) == (50, 20, 5000)
    assert suite.seeds == (188, 288, 588, 688, 888)
    assert (suite.steps, suite.guidance, suite.resolution) == (100, 9.0, 512)
    assert suite.prompt("Architectures", "Van Gogh") == "A Architectures image in Van Gogh style."
    assert suite.judge is None


def test_every_cell_is_drawn_once_a_seed() -> None:
    cells = small_suite().cells()
    rows = list(zip(*(part.tolist() for part in cells), strict=True))
    assert len(set(rows)) == len(rows) == 3 * 3 * 2


@given(st.integers(1, 5), st.integers(1, 20))
def test_a_part_of_a_suite_draws_every_style_equally_and_says_so(seeds: int, per_style: int) -> None:
    """And the objects as evenly as can be."""
    suite = load_suite("canvas").restricted(seeds, per_style)
    cells = suite.cells()
    assert set(Counter(cells.styles.tolist()).values()) == {seeds * per_style}
    drawn = Counter(cells.objects.tolist())
    counts = [drawn[row] for row in range(20)]
    assert max(counts) - min(counts) <= 2 * seeds
    part = {"seeds": seeds, "of_seeds": 5, "objects_per_style": per_style, "of_objects": 20}
    assert suite.sampling()["subset"] == (None if (seeds, per_style) == (5, 20) else part)
    assert suite.sampling()["seeds"] == list(grid.SEEDS[:seeds])


@given(st.integers(1, 20), st.sets(st.integers(0, 19), max_size=3), st.sets(st.integers(0, 11), max_size=2))
def test_of_what_is_erased_all_pictures_are_drawn(per_style: int, objects: set[int], styles: set[int]) -> None:
    """Once each, whatever part of the suite is drawn of the others."""
    suite = load_suite("canvas").restricted(seeds=1, objects_per_style=per_style)
    further = suite.further_cells({"object": sorted(objects), "style": sorted(styles)})
    usual = set(zip(*(part.tolist() for part in suite.cells()), strict=True))
    added = list(zip(*(part.tolist() for part in further), strict=True))
    assert len(set(added)) == len(added)
    assert not usual & set(added)
    assert all(obj in objects or style in styles for obj, style, _ in added)
    wanted = {(obj, style, 188) for obj in range(20) for style in range(12) if obj in objects or style in styles}
    assert wanted <= usual | set(added)


def test_a_file_gives_a_suite_of_ones_own(tmp_path: Path) -> None:
    """Folders are relative to it; what it leaves out has defaults."""
    (tmp_path / "clip").mkdir()
    suite = load_suite(write(tmp_path, MINE + "judge: {type: clip, model: clip}\n"))
    assert (suite.name, suite.resolution, suite.template) == ("mine", 0, grid.TEMPLATE)
    assert suite.judge == {"type": "clip", "model": tmp_path / "clip"}


def test_a_file_may_extend_a_built_in_suite(tmp_path: Path) -> None:
    """How UnlearnCanvas gets its judge."""
    for name in ("styles", "objects", "pictures"):
        (tmp_path / name).mkdir()
    text = "extends: unlearncanvas\njudge: {type: classifier, styles: styles, objects: objects}\nreference: pictures\n"
    suite = load_suite(write(tmp_path, text))
    assert (len(suite.styles), suite.steps, suite.name) == (50, 100, "mine")
    assert suite.reference == tmp_path / "pictures"


def test_all_faults_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    text = """
styles: [Rust, rust]
objects: [a cat, true]
seeds: [1, 1]
steps: 0
guidance: much
resolution: 500
template: "{style} of {thing}"
judge: {type: clip, model: nowhere}
reference: nowhere
colour: red
"""
    with pytest.raises(SettingsError) as caught:
        load_suite(write(tmp_path, text))
    for fault in (
        "'Rust', 'rust'", "holds True", "(1, 1)", "steps is 0", "'much'", "multiple of 8", "{thing}",
        "no folder for model", "no such folder", "unknown setting 'colour'",
    ):  # fmt: skip
        assert fault in str(caught.value)
    assert len(caught.value.problems) == 10


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("styles: [a, b]\n", "objects is missing"),
        (MINE + "extends: imagenet\n", "extends is 'imagenet'"),
        (MINE + "judge: {type: oracle}\n", "canvas, canvas160, classifier, clip"),
        (MINE + "judge: {type: clip}\n", "needs model"),
        (MINE + "judge: clip\n", "must have a type"),
        (MINE.replace("[Neon Lines, Rust]", "Rust"), "two or more names"),
        ("- a list\n", "must hold a mapping"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        load_suite(write(tmp_path, text))


def test_a_suite_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(SettingsError, match="canvas, canvas160, unlearncanvas, or a YAML file"):
        load_suite("imagenet")


@pytest.mark.parametrize("text", ["neon lines", "NEON  LINES", "Neon_Lines"])
def test_concepts_are_found_as_people_write_them(text: str) -> None:
    assert small_suite().find(text, "style") == 0


def test_an_unknown_concept_names_the_nearest() -> None:
    with pytest.raises(ConceptError, match="nearest: 'Neon Lines'"):
        small_suite().find("neon line", "style")


def test_braces_in_a_name_stay_as_they_are() -> None:
    suite = small_suite(objects=("a {style}", "a dog"), template="{style}: {object}")
    assert suite.prompt("a {style}", "Rust {object}") == "Rust {object}: a {style}"
