"""Generic texts: words of a model's own vocabulary in short templates. What people ask a model for, whatever it is."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from typing import Final

TEMPLATES: Final = (
    "{}", "a {}", "a photo of a {}", "a painting of a {}", "a {} and a {}", "a {} with a {}", "a {} in {} style",
    "a picture of a {} in a {}", "{} {} {}",
)  # fmt: skip


def generic_texts(
    words: Sequence[str], count: int, chance: random.Random, templates: Sequence[str] = TEMPLATES
) -> list[str]:
    """``count`` texts, the templates in turn, each slot with a word; the words in shuffled order, all before any comes
    again."""
    deck = _dealt(words, chance)
    return ["".join(_filled(templates[i % len(templates)], deck)) for i in range(count)]


def _filled(template: str, deck: Iterator[str]) -> Iterator[str]:
    for before, slot, _, _ in string.Formatter().parse(template):
        yield before
        if slot is not None:
            yield next(deck)


def _dealt(words: Sequence[str], chance: random.Random) -> Iterator[str]:
    while True:
        yield from chance.sample(words, len(words))
