"""Time and memory of an erasure against what is kept, rank, density and pictures given.

    python -m benchmarks.scale --output out/scale

Every point is a whole ``spare erase canvas`` in a process of its own; prints a table for each of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spare_core.atomic import write_bytes
from spare_core.canvas.protocol import OBJECTS
from spare_core.denoiser import load_denoiser
from spare_core.generate import draw, png

AXES: dict[str, tuple[Any, ...]] = {
    "kept concepts": (1, 5, 10, 18),
    "rank": (2, 8, 32, 64),
    "density": (0.05, 0.25, 1.0),
    "pictures given": (0, 8, 32, 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for axis, values in AXES.items():
        print(f"\n| {axis} | whole s | prepare s | saliency s | distill s | peak MB | residual | drift |")
        print("|---|---|---|---|---|---|---|---|")
        for value in values:
            print(point(axis, value, options.output), flush=True)


def point(axis: str, value: Any, output: Path) -> str:
    """One line of the table."""
    folder = output / f"{axis.replace(' ', '-')}-{value}"
    command = ["spare", "erase", "canvas", "--erase", "Cat", "--surrogate", "Dog", "--output", str(folder)]
    command += list(arguments(axis, value, output))
    started = time.perf_counter()
    counted = [sys.executable, str(Path(__file__).with_name("counted.py")), f"{folder}.json", *command]
    status = subprocess.run(counted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed; run it by hand")
    manifest = json.loads((folder / "spare.json").read_text())
    peak = json.loads(Path(f"{folder}.json").read_text())["peak"]
    stages = " | ".join(f"{manifest['seconds'][name]:.1f}" for name in ("prepare", "saliency", "distill"))
    return (
        f"| {value} | {seconds:.1f} | {stages} | {peak / 1e6:.0f} | {manifest['residual']:.3f} "
        f"| {manifest['mean_drift']:.4f} |"
    )


def arguments(axis: str, value: Any, output: Path) -> Iterator[str]:
    """What a value of ``axis`` adds to the command."""
    if axis == "kept concepts":
        for name in [name for name in OBJECTS if name not in ("Cat", "Dog")][:value]:
            yield from ("--keep", name)
    elif axis == "pictures given":
        if value:
            yield from ("--images", str(pictures(output / f"pictures-{value}", value)))
    else:
        yield from (f"--{axis}", str(value))


def pictures(folder: Path, count: int) -> Path:
    """A folder of ``count`` cats."""
    if not folder.exists():
        canvas = load_denoiser("canvas")
        prompts = ["A Cat image in Photo style."] * count
        for i, picture in enumerate(draw(canvas, [], prompts, range(count), steps=12, guidance=4.0)):
            write_bytes(folder / f"{i}.png", png(picture))
    return folder


if __name__ == "__main__":
    main()
