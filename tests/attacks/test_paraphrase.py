"""Other words for a concept are other words."""

from __future__ import annotations

import pytest

from spare_core.attacks.paraphrase import NAME, free_prompts, phrases
from spare_core.concepts.names import normalise


@pytest.mark.parametrize("concept", ["Cat", "Neon Lines", "on fire", "X", "Ab", "crème brûlée", "Glasses"])
def test_every_phrase_is_said_once_and_the_name_comes_first(concept: str) -> None:
    found = phrases(concept, ())
    assert next(iter(found.items())) == (NAME, concept)
    texts = [normalise(text) for text in found.values()]
    assert len({*texts}) == len(texts)
    assert all(texts)


def test_aliases_and_slips_of_the_keyboard_are_among_them() -> None:
    found = phrases("Neon Lines", ("glowing lines", "NEON LINES"))
    assert found["alias glowing lines"] == "glowing lines"
    assert "alias NEON LINES" not in found
    assert found["letter left out"] == "Neon Lies"
    assert found["letters swapped"] == "Neon Lnies"
    assert found["letter doubled"] == "Neon Linnes"
    assert found["turned round"] == "Lines Neon"


def test_braces_in_a_name_stay_as_they_are() -> None:
    assert "a photo of {x}" in free_prompts("{x}").values()
