"""Draw Canvas's whole grid on the base model and say what the judge recognises, concept by concept.

python -m benchmarks.canvas_quality [--seeds 5] [--guidance G] [--sheet grid.png]
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from PIL import Image

from spare_core.evaluation.grid import draw_grid
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.suite import load_suite
from spare_core.models.loading import load_denoiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of the suite's five")
    parser.add_argument("--objects-per-style", type=int, default=0, help="0: all")
    parser.add_argument("--guidance", type=float, help="instead of the suite's")
    parser.add_argument("--steps", type=int, help="instead of the suite's")
    parser.add_argument("--sheet", type=Path, help="write the first seed's pictures here")
    options = parser.parse_args()
    suite = load_suite("canvas").restricted(options.seeds, options.objects_per_style)
    changes = {name: getattr(options, name) for name in ("guidance", "steps") if getattr(options, name) is not None}
    suite = dataclasses.replace(suite, **changes)
    judge = load_judge(suite)
    print(f"judge on pictures whose content is known: {judge.accuracy}")
    started = time.perf_counter()
    grid = draw_grid(load_denoiser("canvas"), suite, judge)
    seconds = time.perf_counter() - started
    print(f"{len(grid)} pictures, {suite.steps} steps, guidance {suite.guidance}: {seconds:.0f} s")
    for domain, names, prompted, predicted in (
        ("styles", suite.styles, grid.styles, grid.predicted_styles),
        ("objects", suite.objects, grid.objects, grid.predicted_objects),
    ):
        hits = prompted == predicted
        worst = sorted((hits[prompted == row].float().mean().item(), name) for row, name in enumerate(names))
        listed = ", ".join(f"{name} {share:.3f}" for share, name in worst[:5])
        print(f"{domain}: {hits.float().mean():.4f} recognised; lowest: {listed}")
    if options.sheet:
        _sheet(grid.thumbnails[: len(suite.styles) * len(suite.objects)], len(suite.styles), options.sheet)


def _sheet(thumbnails: torch.Tensor, styles: int, path: Path) -> None:
    """A column for each style, a row for each object."""
    count, height, width, _ = thumbnails.shape
    sheet = thumbnails.reshape(styles, count // styles, height, width, 3).permute(1, 2, 0, 3, 4)
    Image.fromarray(sheet.reshape(count // styles * height, styles * width, 3).numpy()).save(path)


if __name__ == "__main__":
    main()
