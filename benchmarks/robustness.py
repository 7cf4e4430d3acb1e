"""How hard erasures are to undo, what that costs, and what it harms: methods side by side, each concept under attack.

    python -m benchmarks.robustness --jobs 2 --output out/robustness
    python -m benchmarks.robustness --attacks relearning prompt pictures --output out/robustness
    python -m benchmarks.robustness --output out/robustness --plot docs/how-to/robustness.png

An attack learns against what training never saw: other states, other pictures, more steps, and the best of its tries
counts, over all budgets that it was run with. ``--steps``, ``--restarts`` and ``--vectors`` are of the inversions; the
other attacks have what ``spare attack --budget quick`` has. Seconds are of one core's work, without imports and
loading. Each attack is one line of a file of its concept; a run that was stopped goes on with the same command. A
concept is one job: set OMP_NUM_THREADS=1 with ``--jobs 2``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.ablation import BY_MODEL, Bench
from benchmarks.jobs import in_processes, read_rows, read_settings
from benchmarks.tradeoff import SIX
from spare_core.adapters.low_rank import Adapter
from spare_core.attacks.besieged import Besieged
from spare_core.attacks.budgets import BUDGETS, Budget, Learning
from spare_core.attacks.record import Record
from spare_core.attacks.scene import Scene
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.evaluation.attacked import ADAPTED, ATTACKS
from spare_core.evaluation.suite import domain_of
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.settings import METHODS, EraseSettings, preset
from spare_core.runs.progress import no_progress

DEFAULT = ("inversion", "conditioning")
_RATE, _CONDITIONING_RATE = 0.2, 0.075
"""At which inversions of either kind bring most back."""


class Job(NamedTuple):
    """One concept under all variants."""

    model: str
    concept: str
    variants: dict[str, EraseSettings]
    attacks: Sequence[str]
    budget: Budget
    output: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BY_MODEL, default="canvas")
    parser.add_argument("--concepts", nargs="+", default=SIX)
    parser.add_argument("--variants", nargs="+", choices=METHODS, default=["solve", "robust"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of every variant, as JSON")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS[1:], default=DEFAULT)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--vectors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="only draw what there is, as a picture of that name")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.plot is None:
        common = read_settings(options.set)
        variants = {name: EraseSettings.from_mapping({**preset(name), **common}) for name in options.variants}
        budget = dataclasses.replace(
            BUDGETS["quick"],
            inversion=Learning(options.steps, (_RATE,)),
            conditioning=Learning(options.steps, (_CONDITIONING_RATE,)),
            restarts=options.restarts,
            vectors=tuple(options.vectors),
        )
        jobs = [Job(options.model, one, variants, options.attacks, budget, options.output) for one in options.concepts]
        for done in in_processes(run_job, jobs, options.jobs):
            print(done, flush=True)
    rows = read_rows(options.output)
    print(table(rows))
    if options.plot is not None:
        draw(rows, options.plot)


def run_job(job: Job) -> str:
    """Erase, measure and attack, each as far as it is not done."""
    kind, _, surrogate = next(row for row in BY_MODEL[job.model] if row[1] == job.concept)
    bench = Bench(1, 8, job.model)
    erasure = build_erasure(job.model, job.concept, surrogate, kind)  # type: ignore[arg-type]
    for name, settings in job.variants.items():
        one = Variant(bench, erasure, job, name, settings)
        for attack in job.attacks:
            one.attack(attack)
    return f"{job.concept}: done"


class Variant:
    """One concept erased in one way; erased when it is first needed."""

    def __init__(self, bench: Bench, erasure: Erasure, job: Job, name: str, settings: EraseSettings) -> None:
        self.bench, self.erasure, self.job, self.name, self.settings = bench, erasure, job, name, settings
        self.path = job.output / f"{job.model}-{job.concept.replace(' ', '_')}.jsonl"
        self._row: dict[str, Any] = {}
        self._adapter: Adapter | None = None

    def attack(self, attack: str) -> None:
        """Write what an attack brings back, unless that is there."""
        key = {
            "concept": self.erasure.concept, "variant": self.name, "settings": self.settings.as_dict(),
            "attack": attack, "budget": json.loads(json.dumps(self.job.budget.as_dict())),
        }  # fmt: skip
        if any(all(row[name] == value for name, value in key.items()) for row in read_rows(self.job.output)):
            return
        adapter, domain = self._erased(), domain_of(self.erasure)
        scene = Scene(self.bench.denoiser, self.bench.suite, self.bench.judge, domain, self.erasure.concept)
        folder = self.job.output / "found" / f"{time.time_ns()}"
        besieged = Besieged(
            self.bench.denoiser, self.erasure, scene, [adapter], [self.erasure.concept], self.job.budget, 1,
            Record(folder, key), no_progress,
        )  # fmt: skip
        started = time.process_time()
        result = besieged.attack(attack, ADAPTED)
        row = {**key, **self._row, "result": result, "attack_seconds": round(time.process_time() - started, 1)}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{self.name:8} {self.erasure.concept:14} {attack:13} {result['shown']:.2f}", flush=True)

    def _erased(self) -> Adapter:
        if self._adapter is None:
            started = time.process_time()
            prepared = prepare(self.bench.denoiser, Erasures(self.erasure), self.settings)
            state, measured, _ = overwrite(prepared, self.settings)
            seconds = round(time.process_time() - started, 1)
            figures = {"residual": measured.residual, "drift": measured.mean_drift, "seconds": seconds}
            self._row = {**figures, **self.bench.findings(self.erasure, state.adapter)}
            self._adapter = state.adapter
        return self._adapter


def worst(rows: Sequence[Mapping[str, Any]], variant: str, attack: str) -> list[Mapping[str, Any]]:
    """A row for each concept: the budget under which most came back."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if (row["variant"], row["attack"]) == (variant, attack):
            before = found.get(row["concept"])
            if before is None or row["result"]["shown"] > before["result"]["shown"]:
                found[row["concept"]] = row
    return list(found.values())


def change(row: Mapping[str, Any], name: str) -> float:
    """By how many points a figure changed."""
    return 100 * float(row["adapted"][name] - row["base"][name])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each variant and attack, means over concepts, and each concept's share."""
    lines = [
        "| variant | attack | shown | each concept | half after | UA | IRA change | worst | unnamed | CRA change "
        "| residual | drift | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, attack in dict.fromkeys((row["variant"], row["attack"]) for row in rows):
        mine = worst(rows, variant, attack)
        each = ", ".join(f"{row['concept']} {row['result']['shown']:.2f}" for row in mine)
        halves = [str(row["result"].get("half") or "–") for row in mine]
        ira = [change(row, "ira") for row in mine]
        unnamed = [change(row, "ira_unnamed") for row in mine if row["base"]["ira_unnamed"] is not None]
        rest = f"{fmean(unnamed):+.2f}" if unnamed else "–"
        lines.append(
            f"| {variant} | {attack} | {fmean([row['result']['shown'] for row in mine]):.2f} | {each} "
            f"| {', '.join(halves)} | {fmean([row['adapted']['ua'] for row in mine]):.3f} | {fmean(ira):+.2f} "
            f"| {min(ira):+.2f} | {rest} | {fmean([change(row, 'cra') for row in mine]):+.2f} "
            f"| {fmean([row['residual'] for row in mine]):.3f} | {fmean([row['drift'] for row in mine]):.4f} "
            f"| {fmean([row['seconds'] for row in mine]):.0f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The share that attacks bring back against what became of the kept concepts: a dot a concept, a large one the
    mean, with its seconds."""
    from matplotlib.figure import Figure

    attacks, variants = (list(dict.fromkeys(row[name] for row in rows)) for name in ("attack", "variant"))
    figure = Figure(figsize=(1 + 3.4 * len(attacks), 3.6), layout="constrained")
    axes = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
    for place, attack in zip(axes, attacks, strict=True):
        for variant in variants:
            mine = worst(rows, variant, attack)
            if not mine:
                continue
            harm, shown = [change(row, "ira") for row in mine], [row["result"]["shown"] for row in mine]
            (dots,) = place.plot(harm, shown, "o", alpha=0.35)
            place.plot([fmean(harm)], [fmean(shown)], "o", markersize=11, color=dots.get_color(),
                       label=f"{variant}, {fmean([row['seconds'] for row in mine]):.0f} s")  # fmt: skip
        place.set_title(attack)
        place.set_xlabel("IRA, points")
        place.set_ylim(-0.05, 1.05)
        place.legend(loc="upper left", fontsize="small")
    axes[0].set_ylabel("pictures that show the concept")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
