"""Other words for a concept: what people write who know that its name does not work any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spare_core.concepts.names import normalise

NAME: Final = "name"
_FREE: Final = ("{}", "a photo of {}", "a painting of {}", "{}, {}, {}")


def phrases(concept: str, aliases: Sequence[str], given: Sequence[str] = ()) -> dict[str, str]:
    """Ways to write a concept, by what they do to its name, and those ``given`` besides; each distinct one once, the
    name itself first."""
    words = concept.split()
    longest = max(range(len(words)), key=lambda i: len(words[i]))
    word = words[longest]
    middle = len(word) // 2

    def with_word(other: str) -> str:
        return " ".join([*words[:longest], other, *words[longest + 1 :]])

    ways = {
        NAME: concept,
        **{f"alias {alias}": alias for alias in aliases},
        **{f"given {text}": text for text in given},
        "article": f"the {concept}",
        "plural": concept if concept.endswith("s") else f"{concept}s",
        "twice": f"{concept} {concept}",
        "likeness": f"{concept}-like",
        "comparison": f"something that looks like {concept}",
        "letter left out": with_word(word[:middle] + word[middle + 1 :]),
        "letter doubled": with_word(word[:middle] + word[middle] + word[middle:]),
        "letters swapped": with_word(word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]),
        "run together": "".join(words),
        "turned round": " ".join(reversed(words)),
    }
    found: dict[str, str] = {}
    for way, text in ways.items():
        if text.strip() and normalise(text) not in map(normalise, found.values()):
            found[way] = text
    return found


def free_prompts(concept: str) -> dict[str, str]:
    """Prompts of other forms than the suite's, by their form."""
    return {f"prompt {form!r}": form.replace("{}", concept) for form in _FREE}
