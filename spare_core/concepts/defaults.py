"""What an erasure uses where the user names nothing: templates, contexts and kept concepts, by kind."""

from __future__ import annotations

from typing import Final, NamedTuple

from spare_core.concepts.concept import Kind

_SCENES: Final = ("a house", "a portrait of a woman", "a landscape", "a dog", "a city street", "a bowl of fruit",
                  "a boat at sea", "a tree", "a man reading", "a castle", "a horse", "flowers in a vase")  # fmt: skip
_MEDIA: Final = ("a photo", "a painting", "a drawing", "a watercolor", "an illustration", "a sketch")


class KindDefaults(NamedTuple):
    """What an erasure of one kind uses where the user names nothing: the template, what fills ``{context}``, and
    everyday concepts of the same kind to keep."""

    template: str
    contexts: tuple[str, ...]
    keep: tuple[str, ...]


DEFAULTS: Final[dict[Kind, KindDefaults]] = {
    "style": KindDefaults(
        "{context} in {concept} style",
        _SCENES,
        ("photographic", "oil painting", "watercolor", "pencil sketch", "comic book", "impressionist", "pixel art"),
    ),
    "object": KindDefaults(
        "{context} of {concept}",
        _MEDIA,
        ("a dog", "a cat", "a car", "a house", "a tree", "a person", "a boat", "a bird", "a chair", "food on a plate"),
    ),
    "person": KindDefaults(
        "{context} of {concept}",
        (*_MEDIA, "a portrait", "a press photo"),
        ("a man", "a woman", "a child", "an old man", "a young woman", "a politician", "an actor", "a football player"),
    ),
}
