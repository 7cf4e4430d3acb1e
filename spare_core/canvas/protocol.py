"""The one place where Canvas's grid, prompts, seeds and sampler are fixed.

Training, judging and evaluation all read these names; a figure about Canvas means nothing without them.
"""

from __future__ import annotations

from typing import Any, Final

NAME: Final = "canvas"

TEMPLATE: Final = "A {object} image in {style} style."
"""UnlearnCanvas's prompt (arXiv 2402.11846): the one caption every Canvas picture was trained with."""

SEEDS: Final = (188, 288, 588, 688, 888)
"""UnlearnCanvas's five evaluation seeds; the generator is re-seeded for every image."""

RESOLUTION: Final = 64
GUIDANCE: Final = 4.0
STEPS: Final = 20
"""DDIM steps, eta 0."""

OBJECTS: Final[dict[str, tuple[str, ...]]] = {
    "Apple": ("1f34e", "1f34f"),
    "Architecture": ("1f3e0", "1f3e1"),
    "Bear": ("1f43b",),
    "Bird": ("1f426", "1f99c"),
    "Butterfly": ("1f98b",),
    "Cat": ("1f431", "1f63a"),
    "Dog": ("1f415", "1f429"),
    "Fish": ("1f41f", "1f420"),
    "Flower": ("1f33b", "1f33c"),
    "Frog": ("1f438",),
    "Guitar": ("1f3b8",),
    "Horse": ("1f40e",),
    "Jellyfish": ("1fabc",),
    "Mushroom": ("1f344",),
    "Rabbit": ("1f430",),
    "Rocket": ("1f680",),
    "Sandwich": ("1f354",),
    "Tower": ("1f5fc",),
    "Tree": ("1f333", "1f332"),
    "Umbrella": ("2614",),
}
"""Object -> the Unicode code points it is drawn from, each in both vendors' artwork."""

STYLES: Final = (
    "Bricks",
    "Magic Cube",
    "Mosaic",
    "Neon Lines",
    "On Fire",
    "Pencil Drawing",
    "Photo",
    "Pop Art",
    "Red Blue Ink",
    "Rust",
    "Watercolor",
    "Winter",
)


def prompt(object_name: str, style: str) -> str:
    """The benchmark's caption for one cell of the grid."""
    return TEMPLATE.format(object=object_name, style=style)


def suite() -> dict[str, Any]:
    """The benchmark, as the fields of a suite."""
    return {
        "name": NAME,
        "styles": STYLES,
        "objects": tuple(OBJECTS),
        "template": TEMPLATE,
        "seeds": SEEDS,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "resolution": RESOLUTION,
        "judge": {"type": NAME},
    }
