"""Where Canvas's trained weights lie."""

from __future__ import annotations

from pathlib import Path
from typing import Final

WEIGHTS: Final = Path(__file__).parent / "weights"
PIPELINE: Final = WEIGHTS / "pipeline"
"""A diffusers ``StableDiffusionPipeline`` directory."""
