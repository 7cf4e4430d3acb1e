"""What several erasures make of each other's surrogates and kept concepts, and which of them contradict each other."""

from __future__ import annotations

import pytest

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures, keeping
from spare_core.errors import ConceptError


def style(concept: str, surrogate: str, *keep: str) -> Erasure:
    return Erasure(concept, surrogate, "style", keep, "{concept}", ())


def test_one_erasure_is_what_it_was() -> None:
    one = style("Neon", "Photo", "Rust", "photo", "Ink")
    erasures = Erasures(one)
    assert list(erasures) == [one] and len(erasures) == 1
    assert erasures.retained(erasures.frame(one)) == one.retained == ("Photo", "Rust", "Ink")
    assert (erasures.surrogate("Neon"), erasures.surrogate("Rust")) == ("Photo", "Rust")


def test_a_surrogate_that_is_erased_is_followed_to_the_last_one() -> None:
    erasures = Erasures(style("A", "b"), style("B", "C"), style("c", "D"), style("E", "A"))
    assert [erasures.surrogate(name) for name in "ABCE"] == ["D"] * 4
    assert [erasures.erased(name) for name in ("a", "D")] == [True, False]


def test_what_another_erases_is_not_kept() -> None:
    erasures = Erasures(style("A", "S", "B", "K"), style("B", "S", "A", "L"))
    (frame,) = erasures.frames
    assert erasures.retained(frame) == ("S", "K", "L")


def test_what_is_given_back_is_kept_by_what_stays_in_its_frame() -> None:
    rust = Erasure("Rust", "Photo", "style", ("Ink",), "{concept}", (), ("Rusty",))
    cat = Erasure("cat", "dog", "object", (), "a {concept}", ())
    stay = [style("Ink", "Photo"), style("Neon", "Photo", "Rusts"), cat]
    kept = keeping(stay, [rust])
    assert [part.keep for part in kept] == [("Rust", "Rusty"), ("Rusts", "Rusty"), ()]
    assert keeping(kept, [rust]) == kept, "once"


def test_articles_and_plurals_are_no_way_round_an_erasure() -> None:
    """What one request erases, another would hold the model to."""
    style_of = Erasure(
        "Monet", "a photograph", "style", ("The Dog", "oil"), "{context} in {concept} style", ("a dog", "a house")
    )
    dog = Erasure("dogs", "a cat", "object", ("a bird",), "a photo of {concept}", ())
    erasures = Erasures(style_of, dog)
    assert [erasures.erased(text) for text in ("a dog", "Dog", "the dogs", "hot dog")] == [True, True, True, False]
    assert erasures.surrogate("a dog") == "a cat"
    assert erasures.retained(erasures.frame(style_of)) == ("a photograph", "oil")


def test_what_mentions_an_erased_name_is_not_kept_and_said() -> None:
    dog = Erasure("Dog", "Cat", "object", ("two dogs, asleep", "Hot Rod", "dogma"), "{context}: {concept}",
                  ("a dog's house", "a hot-dog stand", "a dog on a hill", "a hill", "DOGS"))  # fmt: skip
    erasures = Erasures(dog)
    assert erasures.left_out == {"two dogs, asleep": "Dog"}
    assert erasures.retained(erasures.frame(dog)) == ("Cat", "Hot Rod", "dogma")
    assert erasures.contexts(erasures.frame(dog)) == ("a hot-dog stand", "a hill", "DOGS")
    only = Erasure("Dog", "Cat", "object", (), "{context}: {concept}", ("a dog on a hill",))
    assert Erasures(only).contexts(Erasures(only).frame(only)) == ("a dog on a hill",)


def test_each_template_keeps_its_own() -> None:
    other = Erasure("Cat", "Dog", "object", ("Hat",), "a {concept}", ())
    erasures = Erasures(style("A", "S", "K"), other)
    assert [erasures.retained(frame) for frame in erasures.frames] == [("S", "K"), ("Dog", "Hat")]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "nothing to erase"),
        ([("A", "B"), ("a ", "C")], "'a ' would be erased twice"),
        ([("A", "B"), ("B", "A")], "A -> B -> A"),
        ([("A", "B"), ("B", "C"), ("C", "b")], "A -> B -> C -> b"),
    ],
)
def test_contradictions_are_refused_with_what_they_are(pairs: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(ConceptError, match=said):
        Erasures(*(style(*pair) for pair in pairs))


def test_an_alias_is_a_name_of_its_concept() -> None:
    """Followed to the same surrogate, never kept, and no concept of another request."""
    cat = Erasure("Cat", "Dog", "object", ("Bear",), "{concept}", (), ("kitty", "pussycat"))
    erasures = Erasures(cat, Erasure("Bear", "KITTY", "object", ("pussycat", "Bird"), "{concept}", ()))
    assert erasures.surrogate("Bear") == erasures.surrogate("Kitty") == "Dog"
    assert erasures.retained(erasures.frames[0]) == ("Dog", "Bird")
    assert erasures.surrogates() == {"Cat": "Dog", "kitty": "Dog", "pussycat": "Dog", "Bear": "KITTY"}
    assert erasures.named(["KITTY", "cat"]) == [cat]
    with pytest.raises(ConceptError, match="'Fish' is not erased there, but Cat, Bear"):
        erasures.named(["Bear", "Fish"])
    with pytest.raises(ConceptError, match="'Kitty' would be erased twice"):
        Erasures(cat, Erasure("Kitty", "Dog", "object", (), "{concept}", ()))


def test_a_word_that_is_part_of_an_erased_name_is_no_other_word() -> None:
    """Nor is its plural, nor a piece of it."""
    erasures = Erasures(Erasure("Neon Lines", "Photo", "style", (), "{concept} {context}", ("x",), ("mushroom",)))
    words = ["neon", "line", "lines", "hroom", "mushrooms", "photo", "linen", "room"]
    assert erasures.other_words(words) == ["photo", "linen"]
