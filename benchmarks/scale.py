"""Time and memory of an erasure against what is kept, rank, layers and pictures given.

    python -m benchmarks.scale --output out/scale --plot out/scale.svg

Every point is a whole ``spare erase canvas`` in a process of its own; prints a table for each of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.whole_process import erase_cat
from spare_core.canvas.protocol import OBJECTS
from spare_core.files.atomic import write_bytes
from spare_core.models.loading import load_denoiser
from spare_core.runs.generate import draw, png

AXES: dict[str, tuple[Any, ...]] = {
    "kept concepts": (1, 5, 10, 18),
    "rank": (2, 8, 32, 64),
    "mask": ("text", "channel", "none"),
    "pictures given": (0, 8, 32, 128),
}


STAGES = ("prepare", "saliency", "distill")


class Point(NamedTuple):
    """What one process took: seconds, whole and by stage, the most memory in bytes, and what the adapter measures."""

    value: Any
    whole: float
    stages: tuple[float, ...]
    peak: int
    residual: float
    drift: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="file of a picture: svg, png, pdf")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Point]] = {}
    for axis, values in AXES.items():
        print(f"\n| {axis} | whole s | {' | '.join(f'{name} s' for name in STAGES)} | peak MB | residual | drift |")
        print("|---|---|---|---|---|---|---|---|")
        found[axis] = []
        for value in values:
            point = measure(axis, value, options.output)
            found[axis].append(point)
            print(line(point), flush=True)
    if options.plot:
        plot(found, options.plot)


def measure(axis: str, value: Any, output: Path) -> Point:
    """One process."""
    folder = output / f"{axis.replace(' ', '-')}-{value}"
    run = erase_cat(folder, *arguments(axis, value, output))
    stages = tuple(run.manifest["seconds"][name] for name in STAGES)
    return Point(value, run.seconds, stages, run.peak, run.manifest["residual"], run.manifest["mean_drift"])


def line(point: Point) -> str:
    """A line of a table."""
    stages = " | ".join(f"{seconds:.1f}" for seconds in point.stages)
    return (
        f"| {point.value} | {point.whole:.1f} | {stages} | {point.peak / 1e6:.0f} | {point.residual:.3f} "
        f"| {point.drift:.4f} |"
    )


def plot(found: dict[str, list[Point]], path: Path) -> None:
    """A panel for each axis: seconds by stage as bars, peak memory as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 3.2), layout="constrained")
    for panel, (axis, points) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        places = [str(point.value) for point in points]
        below = [point.whole - sum(point.stages) for point in points]
        panel.bar(places, below, label="imports, loading, end", color="0.85")
        for i, name in enumerate(STAGES):
            spent = [point.stages[i] for point in points]
            panel.bar(places, spent, bottom=below, label=name)
            below = [before + more for before, more in zip(below, spent, strict=True)]
        panel.set_xlabel(axis)
        memory = panel.twinx()
        memory.plot(places, [point.peak / 1e6 for point in points], "k.-", label="peak MB")
        memory.set_ylim(0, 1.2 * max(point.peak for rows in found.values() for point in rows) / 1e6)
        panel.set_ylabel("s")
        memory.set_ylabel("MB")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


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
