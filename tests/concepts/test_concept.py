"""Prompts of all sides come from one template; contradictions are found before any work."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spare_core.concepts.concept import KINDS, MAX_CHARACTERS, Erasure
from spare_core.concepts.defaults import DEFAULTS
from spare_core.concepts.names import alike, names_within, normalise, same_concept
from spare_core.errors import ConceptError

WORDS = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40)


def erasure(**changes: Any) -> Erasure:
    template, contexts, _ = DEFAULTS["style"]
    values = {
        "concept": "Neon Lines",
        "surrogate": "Photo",
        "kind": "style",
        "keep": ("Rust", "Winter"),
        "template": template,
        "contexts": contexts,
    }
    return Erasure(**{**values, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_defaults_that_work(kind: Any) -> None:
    template, contexts, keep = DEFAULTS[kind]
    made = erasure(kind=kind, template=template, contexts=contexts, keep=keep)
    assert made.retained == ("Photo", *keep)
    prompts = list(made.prompts("Van Gogh"))
    assert len(prompts) == len(set(prompts)) == len(contexts) >= 5
    assert all("Van Gogh" in prompt and "{" not in prompt for prompt in prompts)


@given(WORDS, WORDS)
def test_prompts_of_two_concepts_differ_in_nothing_but_the_concept(one: str, other: str) -> None:
    made = erasure()
    for context in made.contexts:
        before, after = f"{context} in ", " style"
        assert made.prompt(one, context) == before + one + after
        assert made.prompt(other, context) == before + other + after


@given(WORDS)
def test_braces_in_a_concept_are_words(words: str) -> None:
    text = "{concept} {context} {" + words
    assert erasure().prompt(text, "a {concept}") == f"a {{concept}} in {text} style"


def test_a_concept_is_put_into_each_context() -> None:
    made = erasure(template="{concept}: {context}", contexts=("a tree", "a boat"))
    assert list(made.prompts("Rust")) == ["Rust: a tree", "Rust: a boat"]


def test_without_contexts_there_is_one_prompt() -> None:
    assert list(erasure(template="in {concept} style", contexts=()).prompts("Rust")) == ["in Rust style"]


def test_the_surrogate_is_retained_first_and_nothing_twice() -> None:
    assert erasure(keep=("Rust", "Photo", "Rust", "Winter")).retained == ("Photo", "Rust", "Winter")
    assert erasure(keep=()).retained == ("Photo",)


def test_an_erasure_survives_being_written_down() -> None:
    made = erasure(keep=("Été", "浮世絵"))
    assert Erasure.from_dict(json.loads(json.dumps(made.as_dict()))) == made


@pytest.mark.parametrize("text", ["neon lines", "NEON LINES", "  Neon   Lines ", "Ｎｅｏｎ Lines"])
def test_case_width_and_spacing_do_not_make_another_concept(text: str) -> None:
    assert same_concept("Neon Lines", text)
    with pytest.raises(ConceptError, match="is the concept itself"):
        erasure(surrogate=text)
    with pytest.raises(ConceptError, match="both to be erased and to be kept"):
        erasure(keep=("Rust", text))


@pytest.mark.parametrize("text", ["Neon Line", "the neon lines", "A NEON LINE"])
def test_articles_and_plurals_do_not_make_another_concept_to_a_model(text: str) -> None:
    assert alike("Neon Lines", text)
    assert not same_concept("Neon Lines", text)
    with pytest.raises(ConceptError, match="is the concept itself"):
        erasure(surrogate=text)
    with pytest.raises(ConceptError, match="both to be erased and to be kept"):
        erasure(keep=("Rust", text))


@pytest.mark.parametrize(
    ("one", "many"),
    [("dog", "dogs"), ("box", "boxes"), ("church", "churches"), ("city", "cities"), ("glass", "glasses"),
     ("bus", "bus"), ("pie", "pies")],
)  # fmt: skip
def test_a_word_and_its_plural_are_alike(one: str, many: str) -> None:
    assert alike(one, many)


@pytest.mark.parametrize(("a", "b"), [
    ("O'Keeffe", "O\u2019Keeffe"), ("Spider-Man", "spider\u2010man"), ("\u201cX\u201d", '"x"'),
    ("A\u2013B", "a-b"),
])  # fmt: skip
def test_typeset_quotes_and_dashes_are_those_that_are_typed(a: str, b: str) -> None:
    assert same_concept(a, b)


@pytest.mark.parametrize(("a", "b"), [
    ("Spider-Man", "Spider Man"), ("Salvador Dal\u00ed", "salvador dali"), ("Watercolour", "watercolors"),
    ("a grey theatre", "gray theaters"), ("Doughnuts", "donut"), ("Joan Mir\u00f3", "Joan Miro\u0301"),
])  # fmt: skip
def test_accents_hyphens_and_british_spelling_do_not_make_another_name(a: str, b: str) -> None:
    assert alike(a, b)


@pytest.mark.parametrize(("text", "names"), [
    ("Neon Lines, Rust", ["Neon Lines", "Rust"]), ("Cat|Dog", ["Cat", "Dog"]),
    ("Cat,Dog; Cow / Pig", ["Cat", "Dog", "Cow", "Pig"]), ("Martin Luther King, Jr.", []), ("Steins;Gate", []),
    ("1,000 Paintings", []), ("AC/DC", []), ("Neon Lines", []), ("", []),
])  # fmt: skip
def test_a_list_in_a_name_is_told_from_a_name(text: str, names: list[str]) -> None:
    assert names_within(text) == names


@pytest.mark.parametrize(
    ("a", "b"), [("が", "か"), ("Neon Lines", "NeonLines"), ("a", "the"), ("gas", "ga"), ("bus", "bu")]
)
def test_other_words_make_another_concept(a: str, b: str) -> None:
    assert not same_concept(a, b)
    assert not alike(a, b)


@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once_for_what_is_compared(text: str) -> None:
    assert same_concept(text, f"  {text} ")
    assert normalise(text) == " ".join(normalise(text).split())


@pytest.mark.parametrize("side", ["concept", "surrogate", "keep"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" \u3000", "is empty"),
        ("Neon\nLines", r"U\+000A"),
        ("Neon\x00", r"U\+0000"),
        ("Neon\u202eLines", r"U\+202E"),
        ("Neon\u200bLines", r"U\+200B"),
        ("Neon\ud800", r"U\+D800"),
        ("Neon\u2028Lines", r"U\+2028"),
        ("x" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS}"),
    ],
)
def test_a_concept_that_cannot_be_one_is_refused(side: str, text: str, said: str) -> None:
    with pytest.raises(ConceptError, match=said):
        erasure(**{side: (text,) if side == "keep" else text})


@pytest.mark.parametrize(
    "text", ["x" * MAX_CHARACTERS, "浮世絵", "Été à Paris", "👩\u200d🎨", "{braces}", "a" * 3 + "\u0301"]
)
def test_what_people_write_is_accepted(text: str) -> None:
    assert erasure(concept=text).concept == text


def test_every_contradiction_is_told_at_once() -> None:
    with pytest.raises(ConceptError) as caught:
        erasure(surrogate="neon lines", keep=("Neon Lines", ""), kind="colour", template="plain")
    said = str(caught.value)
    for part in (
        "concept itself",
        "both to be erased",
        "kept concept is empty",
        "kind is 'colour'",
        "template is 'plain'",
    ):
        assert part in said


@pytest.mark.parametrize(
    "template",
    [
        "",
        "in style",
        "{context} only",
        "{concept} only",
        "{concept} {concept} {context}",
        "{concept} {context} {x}",
        "{concept} {context} }",
        "{{concept}} {context}",
    ],
)
def test_a_template_without_its_slots_is_refused(template: str) -> None:
    with pytest.raises(ConceptError, match="template is"):
        erasure(template=template)


def test_an_error_shortens_what_it_quotes() -> None:
    with pytest.raises(ConceptError) as caught:
        erasure(concept="x" * 100_000)
    assert len(str(caught.value)) < 200


def test_aliases_are_erased_with_their_concept() -> None:
    made = erasure(aliases=("Neon", "glowing lines"))
    assert made.names == ("Neon Lines", "Neon", "glowing lines")
    assert Erasure.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    assert "aliases" not in erasure().as_dict(), "what has none is written as before there were any"


@pytest.mark.parametrize(
    ("aliases", "said"),
    [
        (("PHOTO",), "the surrogate 'Photo' is the concept itself"),
        (("rust",), "'rust' is both to be erased and to be kept"),
        (("neon lines",), "an alias of 'Neon Lines' is named twice, or is the concept itself"),
        (("a", "A"), "an alias of 'Neon Lines' is named twice"),
        (("",), "the alias is empty"),
        (("a\x00b",), "U\\+0000"),
        (("x" * 10_000,), "10000 characters"),
    ],
)
def test_an_alias_that_cannot_be_one_is_refused(aliases: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConceptError, match=said):
        erasure(aliases=aliases)
