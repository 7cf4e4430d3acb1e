"""Erase many concepts of a built-in model, one at a time, under one or many settings, and tabulate what the judge sees.

    python -m benchmarks.ablation --variants default --seeds 2 --output out/twelve
    python -m benchmarks.ablation --model canvas160 --output out/twelve160
    python -m benchmarks.ablation --variants solve paper both --seeds 2 --output out/methods
    python -m benchmarks.ablation --variants all --set steps=60 --seeds 1 --objects-per-style 10 --output out/ablation

Every erasure is one line of ``results.jsonl``; a run that was stopped goes on with the same command. The bank and the
timestep profile do not depend on what is varied and are made once for each concept; ``seconds`` counts them in. A
concept is one job: ``--jobs 2`` works on two at once, each on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.jobs import in_processes, read_settings
from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.evaluation.findings import Question, findings
from spare_core.evaluation.grid import base_grid, draw_grid, with_further
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.reference import load_reference
from spare_core.evaluation.suite import domain_of, load_suite
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.masks import describe_masks
from spare_core.method.settings import METHODS, EraseSettings, preset
from spare_core.models.loading import load_denoiser

CONCEPTS = (
    ("style", "Neon Lines", "Pencil Drawing"),
    ("style", "Rust", "Bricks"),
    ("style", "Winter", "Photo"),
    ("style", "Mosaic", "Magic Cube"),
    ("style", "Red Blue Ink", "Watercolor"),
    ("style", "On Fire", "Pop Art"),
    ("object", "Cat", "Dog"),
    ("object", "Butterfly", "Bird"),
    ("object", "Tower", "Architecture"),
    ("object", "Mushroom", "Tree"),
    ("object", "Guitar", "Umbrella"),
    ("object", "Jellyfish", "Fish"),
)
"""Kind, concept, surrogate: a sensible neighbour."""
CONCEPTS160 = (
    ("style", "Neon Lines", "Pop Art"),
    ("style", "Rust", "Bricks"),
    ("style", "Winter", "Photo"),
    ("style", "Mosaic", "Magic Cube"),
    ("object", "Giraffe", "Camel"),
    ("object", "Penguin", "Duck"),
    ("object", "Octopus", "Crab"),
    ("object", "Rose", "Tulip"),
    ("object", "Pizza", "Sandwich"),
    ("object", "Guitar", "Saxophone"),
    ("object", "Castle", "Temple"),
    ("object", "Bicycle", "Tractor"),
)
BY_MODEL = {"canvas": CONCEPTS, "canvas160": CONCEPTS160}

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "mask none": {"mask": "none"},
    "mask module": {"mask": "module"},
    "mask channel": {"mask": "channel"},
    "mask weight": {"mask": "weight"},
    "timesteps uniform": {"timesteps": "uniform"},
    "timesteps window": {"timesteps": "window"},
    "timesteps threshold": {"timesteps": "threshold"},
    "mask channel, contrast off": {"mask": "channel", "contrast": False},
    "closed form off": {"closed_form": False},
    **{name: preset(name) for name in METHODS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BY_MODEL, default="canvas")
    parser.add_argument("--variants", nargs="+", default=["default"], help=f"all, or some of: {', '.join(VARIANTS)}")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of every variant, as JSON")
    parser.add_argument("--concepts", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, default=0, help="0: as many as the suite says")
    parser.add_argument("--objects-per-style", type=int, default=0, help="0: as many as the suite says")
    parser.add_argument("--jobs", type=int, default=1, help="so many concepts at once; set OMP_NUM_THREADS=1 with it")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    common = read_settings(options.set)
    names = list(VARIANTS) if options.variants == ["all"] else options.variants
    variants = {name: EraseSettings.from_mapping({**common, **VARIANTS[name]}) for name in names}
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "results.jsonl"
    grid = [options.model, options.seeds, options.objects_per_style]
    done = [row for row in _rows(results) if row["grid"] == grid and _is_of(row, variants)]
    jobs = [
        Job(options.model, options.seeds, options.objects_per_style, concept, variants, done, results)
        for concept in BY_MODEL[options.model]
        if not options.concepts or concept[1] in options.concepts
    ]
    for rows in in_processes(run_job, jobs, options.jobs):
        done += rows
    print(table(done, variants))


class Job(NamedTuple):
    """One concept under all variants that are not ``done``, to be appended to ``results``."""

    model: str
    seeds: int
    objects_per_style: int
    concept: tuple[str, str, str]
    variants: dict[str, EraseSettings]
    done: list[dict[str, Any]]
    results: Path


def run_job(job: Job) -> list[dict[str, Any]]:
    """The rows of a job, each written as soon as it is measured: in one write, since other jobs append to the file."""
    bench = Bench(job.seeds, job.objects_per_style, job.model)
    rows = []
    for row in bench.run(*job.concept, job.variants, job.done):
        row["grid"] = [job.model, job.seeds, job.objects_per_style]
        rows.append(row)
        with job.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(_line(row), flush=True)
    return rows


def _rows(results: Path) -> list[dict[str, Any]]:
    """What is done; a last line that a kill cut off is dropped."""
    lines = results.read_text().split("\n")[:-1] if results.exists() else []
    results.write_text("".join(line + "\n" for line in lines))
    return [json.loads(line) for line in lines]


def _is_of(row: dict[str, Any], variants: dict[str, EraseSettings]) -> bool:
    return row["variant"] in variants and row["settings"] == variants[row["variant"]].as_dict()


class Bench:
    """The model, the judge and the base's pictures, loaded once.

    Variants with equal settings, such as the default and each part it is made of, are run once.
    """

    def __init__(self, seeds: int, objects_per_style: int, model: str = "canvas") -> None:
        self.model = model
        self.denoiser = load_denoiser(model)
        self.suite = load_suite(model).restricted(seeds, objects_per_style)
        self.judge = load_judge(self.suite)
        self.reference, _ = load_reference(self.suite, self.judge)
        self.digest = self.denoiser.files.digest()
        self.base, _ = base_grid(self.denoiser, self.digest, self.suite, self.judge)

    def run(
        self,
        kind: str,
        concept: str,
        surrogate: str,
        variants: dict[str, EraseSettings],
        done: Sequence[dict[str, Any]],
    ) -> Any:
        """One row for each variant that is not done."""
        erasure = build_erasure(self.model, concept, surrogate, kind)  # type: ignore[arg-type]
        prepared = None
        finished: dict[str, dict[str, Any]] = {
            json.dumps(row["settings"], sort_keys=True): row for row in done if row["concept"] == concept
        }
        for name, settings in variants.items():
            key = json.dumps(settings.as_dict(), sort_keys=True)
            if key in finished:
                if not any(row["variant"] == name and row["concept"] == concept for row in done):
                    yield {**finished[key], "variant": name}
                continue
            started = time.perf_counter()
            if prepared is None:
                prepared = prepare(self.denoiser, Erasures(erasure), settings)
                shared = time.perf_counter() - started
                started = time.perf_counter()
            state, measured, masks = overwrite(prepared, settings)
            seconds = shared + time.perf_counter() - started
            found = self.findings(erasure, state.adapter)
            row = {
                "variant": name, "kind": kind, "concept": concept, "surrogate": surrogate,
                "settings": settings.as_dict(), "seconds": round(seconds, 1), "steps": state.step,
                "density": describe_masks(masks)["density"], "residual": measured.residual,
                "drift": measured.mean_drift, "unnamed_drift": measured.unnamed_drift,
                "near_drift": measured.near_drift, **found,
            }  # fmt: skip
            finished[key] = row
            yield row

    def findings(self, erasure: Erasure, adapter: Adapter) -> dict[str, dict[str, float]]:
        """UA, IRA of all and of the unnamed, CRA and FID of the ``base`` and of the ``adapted`` model."""
        domain = domain_of(erasure)
        rows = {domain: (self.suite.find(erasure.concept, domain),)}
        question = Question(self.suite, rows, erasure.keep, (erasure.surrogate,))
        base = with_further(self.base, self.denoiser, self.digest, self.suite, self.judge, rows)
        after = draw_grid(self.denoiser, self.suite, self.judge, [adapter], cells=self.suite.all_cells(rows))
        found = findings(base, after, question, self.reference)
        names = ("ua", "ira", "ira_unnamed", "cra", "fid")
        return {side: {name: found[side][name] for name in names} for side in ("base", "adapted")}


def _line(row: dict[str, Any]) -> str:
    base, adapted = row["base"], row["adapted"]
    unnamed = ""
    if base["ira_unnamed"] is not None:
        unnamed = f"unnamed {base['ira_unnamed']:.3f}>{adapted['ira_unnamed']:.3f} "
    return (
        f"{row['variant']:<26} {row['concept']:<13} UA {adapted['ua']:.3f} IRA {base['ira']:.3f}>{adapted['ira']:.3f} "
        f"{unnamed}CRA {base['cra']:.3f}>{adapted['cra']:.3f} FID {base['fid']:.2f}>{adapted['fid']:.2f} residual "
        f"{row['residual']:.3f} drift {row['drift']:.4f} {row['steps']} steps {row['seconds']:.0f} s"
    )


def table(rows: Sequence[dict[str, Any]], variants: dict[str, EraseSettings]) -> str:
    """Markdown: a line for each variant, means over the concepts; changes are adapted minus base."""
    lines = [
        "| variant | concepts | UA mean | UA worst | IRA change | unnamed | worst | CRA change | FID change | residual "
        "| drift | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in variants:
        mine = [row for row in rows if row["variant"] == name]
        if not mine:
            continue

        def mean(read: Any, mine: Any = mine) -> float:
            return sum(read(row) for row in mine) / len(mine)

        fid = mean(lambda r: r["adapted"]["fid"] / r["base"]["fid"] - 1)
        lines.append(
            f"| {name} | {len(mine)} | {mean(lambda r: r['adapted']['ua']):.3f} "
            f"| {min(r['adapted']['ua'] for r in mine):.2f} "
            f"| {100 * mean(lambda r: r['adapted']['ira'] - r['base']['ira']):+.2f} {_unnamed(mine)}"
            f"| {100 * mean(lambda r: r['adapted']['cra'] - r['base']['cra']):+.2f} | {100 * fid:+.1f} % "
            f"| {mean(lambda r: r['residual']):.3f} | {mean(lambda r: r['drift']):.4f} "
            f"| {mean(lambda r: r['seconds']):.0f} |"
        )
    return "\n".join(lines)


def _unnamed(rows: Sequence[dict[str, Any]]) -> str:
    """The mean and the worst change of IRA of the unnamed in points; nothing where all are named."""
    changes = [
        100 * (row["adapted"]["ira_unnamed"] - row["base"]["ira_unnamed"])
        for row in rows
        if row["base"]["ira_unnamed"] is not None
    ]
    return f"| {sum(changes) / len(changes):+.2f} | {min(changes):+.2f} " if changes else "| | "


if __name__ == "__main__":
    main()
