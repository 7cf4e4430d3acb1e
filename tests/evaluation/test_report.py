"""The sheet, the plot and the table show what was measured."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from PIL import Image

from spare_core.evaluation.findings import Question, by_harm, by_presence, findings
from spare_core.evaluation.judgement import Reference
from spare_core.evaluation.metrics import wilson_interval
from spare_core.evaluation.report import SheetRow, contact_sheet, profile_plot, sheet_rows, summary_table
from spare_core.evaluation.suite import load_suite
from tests.support.grids import OBJECTS, STYLES, grid_of, judged, small_suite

SUITE = small_suite()
NEON, PHOTO, RUST = range(3)
QUESTION = Question(SUITE, {"style": (NEON,)}, kept=("rust",), surrogates=("Photo",))
AFTER = judged(SUITE, {**{(obj, "Neon Lines"): "Photo" for obj in OBJECTS}, ("Cat", "Rust"): "Photo"})
"""Neon Lines is gone, and a third of Rust with it."""


def opened(png: bytes) -> Image.Image:
    """The picture, decoded."""
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def reference() -> Reference:
    """Forty real pictures."""
    generator = torch.Generator().manual_seed(9)
    shown = torch.arange(40) % 3
    return Reference(torch.randn(40, 5, generator=generator), shown, shown)


def found(after: bool = True) -> dict[str, Any]:
    """Findings of the erasure above."""
    return findings(grid_of(SUITE), grid_of(SUITE, AFTER) if after else None, QUESTION, reference())


def evaluation(after: bool = True) -> dict[str, Any]:
    """What a report holds beyond the findings, as far as the table reads it."""
    rest = {"suite": "small", "erased": ["Neon Lines"], "kinds": ["style"], "judge": {"name": "canvas"}, "subset": None}
    measured = {"residual": 0.1234, "mean_drift": 0.0456} if after else {"residual": None, "mean_drift": None}
    return {**found(after), **rest, **measured}


def test_findings_hold_figures_intervals_and_denominators() -> None:
    report = found()
    assert (report["base"]["ua"], report["adapted"]["ua"]) == (0.0, 1.0)
    assert report["adapted"]["ira"] == pytest.approx((1 + 4 / 6) / 2)
    for side in (report["base"], report["adapted"]):
        assert set(side) == {"ua", "ira", "ira_unnamed", "cra", "cra_erased", "fid", "intervals"}
        for name, (low, high) in side["intervals"].items():
            assert low <= side[name] <= high
    assert report["counts"] == {
        "pictures": 18, "erased_pictures": 6, "kept_pictures": 12, "ua": {"pictures": 6, "concepts": 1},
        "ira": {"pictures": 12, "concepts": 2}, "cra": {"pictures": 12, "concepts": 3},
        "cra_erased": {"pictures": 6, "concepts": 3}, "fid": {"pictures": 12, "reference": 26},
    }  # fmt: skip


def test_the_unnamed_are_beside_the_named_where_there_are_any() -> None:
    """Without Rust in the request, Rust is what nobody named."""
    assert QUESTION.known == {"style": [1, 2], "object": []}
    assert found()["adapted"]["ira_unnamed"] is None
    assert "IRA_u" not in summary_table(evaluation())
    few = findings(grid_of(SUITE), grid_of(SUITE, AFTER), dataclasses.replace(QUESTION, kept=()), reference())
    assert few["adapted"]["ira_unnamed"] == pytest.approx(4 / 6)
    assert few["counts"]["ira_unnamed"] == {"pictures": 6, "concepts": 1}
    assert "IRA_u 1.000 [" in summary_table({**evaluation(), **few})


def test_neighbours_are_reported_one_by_one() -> None:
    """With what the request said of them; the worst first."""
    report = found()
    rows = {row["concept"]: row for row in report["per_concept"]}
    assert set(rows) == {*STYLES, *OBJECTS}
    assert [rows[name]["erased"] for name in STYLES] == [True, False, False]
    assert [rows[name]["kept"] for name in STYLES] == [False, False, True]
    assert [rows[name]["surrogate"] for name in STYLES] == [False, True, False]
    interval = pytest.approx(wilson_interval(1.0, 6))
    assert rows["Rust"]["before"] == {"accuracy": 1.0, "interval": interval, "probability": pytest.approx(0.9)}
    assert rows["Rust"]["after"]["accuracy"] == pytest.approx(4 / 6)
    assert report["worst_neighbour"] == rows["Rust"]
    assert [row["concept"] for row in by_harm(report["per_concept"], ["style"])] == ["Rust", "Photo"]


def test_of_equally_accurate_neighbours_the_one_less_sure_is_worse() -> None:
    rows = [
        {"concept": name, "kind": "style", "erased": False, "before": {"accuracy": 1.0, "probability": 0.9},
         "after": {"accuracy": 1.0, "probability": probability}}
        for name, probability in (("A", 0.9), ("B", 0.5), ("C", 0.7))
    ]  # fmt: skip
    assert [row["concept"] for row in by_harm(rows, ["style"])] == ["B", "C", "A"]


def test_what_is_recognised_most_often_is_left_most() -> None:
    after = {"A": (0.0, 0.1), "B": (0.5, 0.4), "C": (0.0, 0.3)}
    rows: list[dict[str, Any]] = [
        {"concept": name, "kind": "style", "erased": True, "after": {"accuracy": accuracy, "probability": probability}}
        for name, (accuracy, probability) in after.items()
    ]
    assert [row["concept"] for row in by_presence(rows, "style")] == ["B", "C", "A"]
    assert by_presence([{**rows[0], "after": None}, rows[1]], "style")[0]["concept"] == "A", "of a base as it is"
    assert by_presence(rows, "object") == []


def test_without_an_adapter_there_is_a_base_and_nothing_else() -> None:
    report = found(after=False)
    assert report["adapted"] is report["damage"] is report["worst_neighbour"] is None
    assert all(row["after"] is None for row in report["per_concept"])


def test_without_real_pictures_there_is_no_fid() -> None:
    report = findings(grid_of(SUITE), grid_of(SUITE, AFTER), QUESTION, None)
    assert report["base"]["fid"] is report["adapted"]["fid"] is None
    assert "fid" not in report["counts"]
    assert "not measured" in summary_table({**evaluation(), **report})


def test_the_sheet_shows_erased_then_surrogate_then_the_worst_neighbours() -> None:
    rows = sheet_rows(grid_of(SUITE), SUITE, [NEON], "style", [PHOTO], [RUST, PHOTO])
    assert [(row.label, row.note) for row in rows] == [
        ("Neon Lines", "erased"), ("Photo", "surrogate"), ("Rust", "kept")
    ]  # fmt: skip
    grid = grid_of(SUITE)
    for style, row in enumerate(rows):
        assert row.captions == OBJECTS
        assert grid.styles[list(row.pictures)].tolist() == [style] * 3
        assert set(grid.seeds[list(row.pictures)].tolist()) == {188}


def test_of_a_long_list_the_first_ten_are_on_the_sheet() -> None:
    suite = load_suite("canvas").restricted(seeds=1, objects_per_style=2)
    rows = sheet_rows(grid_of(suite), suite, [*range(12)], "object", [*range(8, 20)], [3, *range(12, 20)])
    assert [row.note for row in rows] == ["erased"] * 10 + ["surrogate"] * 5 + ["kept"] * 3
    names = [row.label for row in rows]
    assert len({*names}) == len(names)
    assert not {suite.names("object")[i] for i in (10, 11)} & {*names}, "what is erased is no surrogate and not kept"


def test_a_part_of_a_suite_has_a_sheet_too() -> None:
    """Each concept in the contexts that were drawn."""
    suite = load_suite("canvas").restricted(seeds=1, objects_per_style=2)
    rows = sheet_rows(grid_of(suite), suite, [3], "object", [5], list(range(20)))
    assert rows[0].note == "erased"
    assert all(row.pictures for row in rows)


def test_pictures_stand_side_by_side_before_and_after() -> None:
    before = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    after = torch.full_like(before, 200)
    rows = [SheetRow("Neon Lines and a rather long name", "erased", (0, 1), ("Cat", "Dog"))]
    both, alone = (opened(contact_sheet(before, side, rows, "title")) for side in (after, None))
    assert both.mode == "RGB"
    pair = 2 * 130 + 6
    for column in range(2):
        y = both.height - 70
        assert both.getpixel((150 + column * pair + 60, y)) == (0, 0, 0)
        assert both.getpixel((150 + column * pair + 130 + 60, y)) == (200, 200, 200)
    assert alone.width < both.width


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    before = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    before[0, 0, 0] = 255
    sheet = opened(contact_sheet(before, None, [SheetRow("a", "kept", (0,), ("b",))], "title"))
    corner = (150, sheet.height - 128 - 6)
    assert [sheet.getpixel((corner[0] + x, corner[1])) for x in (0, 1, 2)] == [(255,) * 3, (255,) * 3, (0,) * 3]


def test_labels_that_do_not_fit_are_cut_not_spilt() -> None:
    before = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    row = SheetRow("Donaudampfschifffahrtsgesellschaft " * 9, "erased", (0,), ("a caption that is far too long " * 5,))
    sheet = opened(contact_sheet(before, None, [row], "title"))
    right = sheet.crop((150 + 128 + 4, 52, sheet.width, sheet.height))
    assert right.getextrema() == ((255, 255),) * 3
    assert sheet.crop((146, 52 + 18, 150, sheet.height)).getextrema() == ((255, 255),) * 3


def test_the_profile_is_plotted_for_each_concept() -> None:
    profile = {"edges": [0, 250, 500, 1000], "gap": [0.1, 0.4, 0.2], "probabilities": [0.2, 0.5, 0.3]}
    one, two = (opened(profile_plot(profiles)) for profiles in ({"A": profile}, {"A": profile, "B": profile}))
    assert (one.format, one.width) == ("PNG", two.width)
    assert two.height == 2 * one.height


def test_the_table_gives_both_sides_with_intervals_and_the_worst_neighbour() -> None:
    table = summary_table(evaluation())
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    assert lines["UA"].split()[1] == "0.000"
    assert "1.000 [0.610, 1.000]" in lines["UA"]
    assert "residual 0.123, mean drift 0.0456" in table
    assert "worst neighbour: Rust, accuracy 1.000 -> 0.667, probability 0.900 -> 0.667" in table
    assert max(map(len, table.splitlines())) <= 100


def test_the_table_of_a_base_alone_has_one_side() -> None:
    table = summary_table(evaluation(after=False))
    assert "before" in table
    assert "after" not in table
    assert "worst" not in table


def test_probability_falls_show_where_accuracy_cannot() -> None:
    """With one seed a style has few possible accuracies."""
    after = grid_of(SUITE)
    after = dataclasses.replace(after, style_probability=torch.where(after.styles == RUST, 0.5, 0.9))
    report = findings(grid_of(SUITE), after, QUESTION, None)
    assert report["worst_neighbour"]["concept"] == "Rust"
    after = report["worst_neighbour"]["after"]
    assert (after["accuracy"], after["probability"]) == (1.0, pytest.approx(0.5))
