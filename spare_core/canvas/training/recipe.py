"""How much each built-in model was trained on, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spare_core.canvas.grid import Grid
from spare_core.canvas.protocol import CANVAS
from spare_core.canvas.protocol160 import CANVAS160


@dataclass(frozen=True)
class Recipe:
    """Renderings of each cell to train on and held out, pictures of a step, and steps of each stage."""

    grid: Grid
    per_cell: dict[str, int]
    batch: int
    steps: dict[str, int]
    autoencoder: Path | None = None
    """A trained one to use; None trains its own."""


RECIPES: Final = {
    recipe.grid.name: recipe
    for recipe in (
        Recipe(
            CANVAS,
            per_cell={"train": 100, "heldout": 10},
            batch=64,
            steps={"vae": 2600, "denoiser": 5000, "judge": 4500},
        ),
        Recipe(
            CANVAS160,
            per_cell={"train": 40, "heldout": 4},
            batch=512,
            steps={"denoiser": 3900, "judge": 3000},
            autoencoder=CANVAS.pipeline / "vae",
        ),
    )
}
