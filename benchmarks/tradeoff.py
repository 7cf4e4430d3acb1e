"""What an erasure costs and what it leaves, over all that steers it: residual against drift, many settings at once.

    python -m benchmarks.tradeoff --output out/tradeoff --jobs 2
    python -m benchmarks.tradeoff --output out/tradeoff --plot docs/images/tradeoff

Each setting is a change to one of two starts, *solve* and *paper* (the methods of ``spare erase``): mask, density,
rank, weights of the losses, timesteps, prior. Six concepts of Canvas, three seeds; residual and drift on fresh probes,
UA and IRA of 120 pictures each. A concept and a seed are one job, whose examples all settings share; a run that was
stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import CONCEPTS, Bench
from benchmarks.jobs import in_processes, read_rows
from spare_core.method.settings import EraseSettings, preset

SIX = ("Neon Lines", "Winter", "Red Blue Ink", "Cat", "Tower", "Mushroom")
SEEDS = (0, 1, 2)
_SHORT = {"steps": 60, "measure_every": 20}
"""Of the paper's method: after so many steps settings are already told apart."""

SOLVE: dict[str, dict[str, Any]] = {
    "solve": {},
    "rank 2": {"rank": 2},
    "rank 4": {"rank": 4},
    "rank 16": {"rank": 16},
    "no prior": {"prior_weight": 0.0},
    "prior weight 5": {"prior_weight": 5.0},
    "prior weight 80": {"prior_weight": 80.0},
    "drift price 1": {"drift_price": 1.0},
    "drift price 16": {"drift_price": 16.0},
    "mask none": {"mask": "none"},
    "channel, density 0.1": {"mask": "channel", "density": 0.1},
    "channel, density 0.5": {"mask": "channel", "density": 0.5},
    "module, density 0.1": {"mask": "module", "density": 0.1},
    "module, density 0.5": {"mask": "module", "density": 0.5},
    "20 steps more": {"enough_residual": 0.0},
}
PAPER: dict[str, dict[str, Any]] = {
    "paper": {},
    "density 0.1": {"density": 0.1},
    "density 0.5": {"density": 0.5},
    "all weights": {"mask": "none", "density": 0.25, "saliency": "gap", "contrast": True},
    "text layers": {"mask": "text", "density": 0.25, "saliency": "gap", "contrast": True},
    "module": {"mask": "module"},
    "weight": {"mask": "weight"},
    "contrast": {"contrast": True},
    "saliency of the gap": {"saliency": "gap"},
    "timesteps uniform": {"timesteps": "uniform"},
    "timesteps threshold": {"timesteps": "threshold"},
    "forget weight 1": {"forget_weight": 1.0},
    "rank 16": {"rank": 16},
    "forget weight 0.1": {"forget_weight": 0.1},
    "rank 4": {"rank": 4},
    "timesteps window": {"timesteps": "window"},
}


def variants(seed: int) -> dict[str, EraseSettings]:
    """All settings by name, "start: change"."""
    common = {"seed": seed, "failed_above": 1e6}
    found = {f"solve: {name}": {**preset("solve"), **change} for name, change in SOLVE.items()}
    found |= {f"paper: {name}": {**preset("paper"), **_SHORT, **change} for name, change in PAPER.items()}
    found["both: both"] = {**preset("both"), "measure_every": 20}
    return {name: EraseSettings.from_mapping({**values, **common}) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--concepts", nargs="+", default=SIX)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--plot", type=Path, help="only draw what there is, as two pictures whose names begin so")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.plot is None:
        jobs = [(name, seed, options.output) for seed in options.seeds for name in options.concepts]
        for done in in_processes(run_job, jobs, options.jobs):
            print(done, flush=True)
    rows = read_rows(options.output)
    print(table(rows))
    if options.plot is not None:
        draw(rows, options.plot)


def run_job(job: tuple[str, int, Path]) -> str:
    """All settings on one concept with one seed."""
    concept, seed, output = job
    kind, _, surrogate = next(row for row in CONCEPTS if row[1] == concept)
    path = output / f"{concept.replace(' ', '_')}-{seed}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    bench = Bench(1, 10)
    for row in bench.run(kind, concept, surrogate, variants(seed), done):
        with path.open("a") as file:
            file.write(json.dumps({**row, "seed": seed}) + "\n")
    return str(path)


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By setting the means over concepts and seeds, from the lowest residual. A setting that not all of them have been
    through is left out: some concepts are harder than others."""
    found = {}
    jobs = len({(row["concept"], row["seed"]) for row in rows})
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        if len(mine) < jobs:
            continue
        found[name] = {
            "ua": statistics.mean(row["adapted"]["ua"] for row in mine),
            "ira": 100 * statistics.mean(row["adapted"]["ira"] - row["base"]["ira"] for row in mine),
            "residual": statistics.mean(row["residual"] for row in mine),
            "drift": statistics.mean(row["drift"] for row in mine),
            "unnamed": statistics.mean(row["unnamed_drift"] for row in mine),
            "seconds": statistics.mean(row["seconds"] for row in mine),
        }
    return dict(sorted(found.items(), key=lambda item: item[1]["residual"]))


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other is better than in both, from the lowest residual."""
    best, names = float("inf"), []
    for name, (_, drift) in sorted(points.items(), key=lambda item: item[1]):
        if drift < best:
            best = drift
            names.append(name)
    return names


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; settings on the front of residual against drift are marked."""
    found = means(rows)
    marked = front({name: (one["residual"], one["drift"]) for name, one in found.items()})
    lines = ["| # | setting | UA | IRA change | residual | drift | unnamed | s |", "|---|---|---|---|---|---|---|---|"]
    for number, (name, one) in enumerate(found.items(), 1):
        label = f"**{name}**" if name in marked else name
        lines.append(
            f"| {number} | {label} | {one['ua']:.3f} | {one['ira']:+.2f} | {one['residual']:.4f} "
            f"| {one['drift']:.4f} | {one['unnamed']:.4f} | {one['seconds']:.0f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Residual against the drift of what is named and against that of what is not, a dot a setting, both by logarithm;
    the front is a line, numbers are the table's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = means(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    for key, label in (("drift", "mean drift of what is kept by name"), ("unnamed", "drift of generic texts")):
        points = {name: (one["residual"], one[key]) for name, one in found.items()}
        figure = Figure(figsize=(7.5, 5.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for start, colour in (("solve", "#1b6e3c"), ("paper", "#b3261e"), ("both", "#1a56b0")):
            mine = [xy for name, xy in points.items() if name.startswith(start)]
            if mine:
                axes.scatter([x for x, _ in mine], [y for _, y in mine], s=18, color=colour, label=start)
        edge = [points[name] for name in front(points)]
        axes.plot([x for x, _ in edge], [y for _, y in edge], color="#1a1a1a", linewidth=0.8, zorder=0, label="front")
        for number, point in enumerate(points.values(), 1):
            axes.annotate(str(number), point, (4, 3), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", yscale="log", xlabel="residual: how much is left", ylabel=label)
        axes.grid(visible=True, which="major", linewidth=0.3)
        axes.legend(fontsize=8)
        figure.savefig(f"{path}-{key}.png", dpi=110)


if __name__ == "__main__":
    main()
