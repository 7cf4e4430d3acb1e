"""Canvas's names, in the one place where they are fixed.

Training, judging and evaluation all read them; a figure about Canvas means nothing without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from spare_core.canvas.grid import TEMPLATE, Grid

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
"""Object -> the Unicode code points that it is drawn from."""

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

CANVAS: Final = Grid("canvas", "Canvas", OBJECTS, STYLES, Path(__file__).parent / "weights")
"""20 objects x 12 styles: small enough that an erasure names all that is kept."""


def prompt(object_name: str, style: str) -> str:
    """The benchmark's caption for one cell of the grid."""
    return TEMPLATE.format(object=object_name, style=style)
