"""What a built-in model is: its names, the artwork and the widths it was trained with, where its files lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spare_core.concepts.concept import Kind

TEMPLATE: Final = "A {object} image in {style} style."
"""UnlearnCanvas's prompt (arXiv 2402.11846): the one caption of whole cells that every picture was trained with."""

SEEDS: Final = (188, 288, 588, 688, 888)
"""UnlearnCanvas's five evaluation seeds; the generator is re-seeded for every image."""

RESOLUTION: Final = 64
GUIDANCE: Final = 4.0
STEPS: Final = 20
"""DDIM steps, eta 0."""


@dataclass(frozen=True)
class Grid:
    """A built-in model in the layout of Stable Diffusion, and the benchmark that goes with it.

    ``artwork`` gives each object the Unicode code points that it is drawn from, each in both vendors' artwork.
    ``keep`` are the concepts of each kind that an erasure keeps whose user names none; a kind that is not there keeps
    all others. ``style_contexts`` are the objects that an erasure of a style is shown in. ``per_style`` and ``seeds``
    are how much of the suite an evaluation draws unless told otherwise; 0 is all.
    """

    name: str
    title: str
    artwork: Mapping[str, tuple[str, ...]]
    styles: tuple[str, ...]
    weights: Path
    """Holds ``pipeline``, a diffusers directory, and ``judge``."""
    channels: tuple[int, int] = (96, 128)
    text_width: int = 128
    judge_widths: tuple[int, int, int] = (32, 64, 112)
    keep: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)
    style_contexts: tuple[str, ...] = ()
    seeds: int = 0
    per_style: int = 0

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of the objects."""
        return tuple(self.artwork)

    @property
    def pipeline(self) -> Path:
        """A diffusers ``StableDiffusionPipeline`` directory."""
        return self.weights / "pipeline"

    def names(self, kind: Kind) -> tuple[str, ...]:
        """All concepts of one kind."""
        return self.styles if kind == "style" else self.objects

    def suite(self) -> dict[str, Any]:
        """The benchmark, as the fields of a suite."""
        return {
            "name": self.name,
            "styles": self.styles,
            "objects": self.objects,
            "template": TEMPLATE,
            "seeds": SEEDS,
            "steps": STEPS,
            "guidance": GUIDANCE,
            "resolution": RESOLUTION,
            "judge": {"type": self.name},
            "first_seeds": self.seeds,
            "objects_per_style": self.per_style,
        }
