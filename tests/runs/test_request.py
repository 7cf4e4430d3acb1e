"""What users ask for, in rows: everything that is wrong with a list is told at once, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasures, read_rows
from spare_core.errors import ConceptError, ImagesError, SettingsError
from spare_core.method.settings import EraseSettings
from spare_core.runs.request import Request, build_request


def test_each_row_has_the_defaults_of_its_kind() -> None:
    erasures = build_erasures(
        "somewhere/else",
        [
            {"concept": "Neon Lines", "surrogate": "photographic", "kind": "style", "keep": ["Rust"]},
            {"concept": "a fox", "surrogate": "a dog", "kind": "object", "template": "{concept}!", "contexts": []},
        ],
    )
    style, fox = erasures
    assert (style.keep, style.template) == (("Rust",), "{context} in {concept} style")
    assert (fox.template, fox.contexts) == ("{concept}!", ())
    assert "a dog" in fox.keep


def test_an_alias_is_not_kept_by_default() -> None:
    (part,) = build_erasures("canvas", [{"concept": "Cat", "surrogate": "Dog", "aliases": ["bear", "kitty"]}])
    assert part.aliases == ("bear", "kitty")
    assert not {"Bear", "Cat", "Dog"} & {*part.keep} and "Fish" in part.keep


def test_everything_that_is_wrong_with_a_list_is_told_at_once() -> None:
    rows: list[Any] = [
        {"concept": "Neon Lines", "surrogate": "Photo"},
        "Cat",
        {"concept": "Cat"},
        {"concept": "Cat", "surrogate": "Dog", "keeps": ["Fish"], "keep": "Fish"},
        {"concept": "Neon Line", "surrogate": "Photo"},
        {"concept": 3, "surrogate": "Photo"},
        {"target": "van gogh", "positive": "van gogh", "unconditional": "", "neutral": "", "action": "erase"},
    ]
    with pytest.raises(SettingsError) as caught:
        build_erasures("canvas", rows)
    said = caught.value.problems
    assert [text.partition(":")[0] for text in said] == [f"request {n}" for n in (2, 3, 4, 4, 5, 6, 7)]
    for text, part in zip(said, ["it is 'Cat'", "surrogate is missing", "unknown name 'keeps'", "keep is 'Fish'",
                                 "nearest: 'Neon Lines'", "concept is 3; it must be text",
                                 "target is the concept, neutral the surrogate"], strict=True):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("Cat", "Dog", ["Fish"]), ("Fish", "Bird", [])], r"request 1, 'Cat', keeps 'Fish', which another erases"),
        ([("Cat", "Dog", []), ("Dog", "Cat", [])], r"in a circle: Cat -> Dog -> Cat"),
        ([("Cat", "Dog", []), ("cat", "Fish", [])], r"'Cat' would be erased twice"),
        ([], "nothing to erase"),
    ],
)
def test_requests_that_contradict_each_other_are_refused(rows: list[tuple[str, str, list[str]]], said: str) -> None:
    with pytest.raises(ConceptError, match=said):
        build_erasures("canvas", [{"concept": c, "surrogate": s, "keep": keep} for c, s, keep in rows])


def test_what_a_default_keeps_and_another_erases_is_no_contradiction() -> None:
    """On Canvas every concept keeps all the others unless it is told which."""
    erasures = build_erasures(
        "canvas", [{"concept": "Cat", "surrogate": "Dog"}, {"concept": "Fish", "surrogate": "Dog"}]
    )
    (frame,) = erasures.frames
    assert "Dog" in erasures.retained(frame)
    assert not {"Cat", "Fish"} & {*erasures.retained(frame)}


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "must hold a list"), ("concept: Cat", "must hold a list"), ("[", "cannot read"), ("[]", "must hold a list")],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "requests.yaml").write_text(text)
    with pytest.raises(SettingsError, match=said):
        read_rows(tmp_path / "requests.yaml")


def test_pictures_of_nobody_knows_which_concept_are_refused(sd1_dir: Path, tmp_path: Path) -> None:
    rows = [{"concept": c, "surrogate": "Photo", "kind": "style"} for c in ("Neon", "Rust")]
    with pytest.raises(ImagesError, match="shows one concept, but 2 are erased"):
        build_request(str(sd1_dir), build_erasures(str(sd1_dir), rows), EraseSettings(), tmp_path)


def test_more_names_than_ranks_are_refused(sd1_dir: Path) -> None:
    """Aliases are names; a single concept with some is no bundle, and nobody's room."""
    rows = [{"concept": f"c{i}", "surrogate": "Photo", "kind": "style", "aliases": [f"a{i}"]} for i in range(3)]
    erasures = build_erasures(str(sd1_dir), rows)
    with pytest.raises(SettingsError, match=r"rank is 5, but 6 names .* leave it to auto, or give a rank of 6"):
        build_request(str(sd1_dir), erasures, EraseSettings(rank=5))
    assert build_request(str(sd1_dir), erasures, EraseSettings(rank=6)).erasures == erasures
    assert build_request(str(sd1_dir), erasures, EraseSettings()).settings.rank == 8
    aliases = tuple(f"a{i}" for i in range(20))
    many = Erasures(Erasure("Neon", "Photo", "style", ("Rust",), "{context} in {concept}", ("a cat",), aliases))
    request = Request("model", "0" * 64, many, EraseSettings())
    assert request.identity()["rank"] == 24, "of a single concept with many names too, wherever it is asked for"
    assert Request.from_dict(request.as_dict()) == request
    assert build_request(str(sd1_dir), build_erasures(str(sd1_dir), rows[:1]), EraseSettings(rank=1))
