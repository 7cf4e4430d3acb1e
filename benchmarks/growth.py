"""A bundle that grows by one concept at a time, loses one again, and is made in other orders.

    python -m benchmarks.growth --output out/growth

The eight Canvas concepts of benchmarks/bundles.py. Each bundle is evaluated against the one before (240 pictures, each
concept's residual on eight trajectories or more that no training saw); what is there already is not made again.
``matrix.png`` of the last shows all of it. Then one of the eight is withdrawn; then the eight are made under two more
seeds, and in two random orders.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import Bench
from benchmarks.bundles import EIGHT, erasure_of
from spare_core.adapters.directory import load_adapter
from spare_core.concepts.erasures import Erasures
from spare_core.evaluation.evaluate import evaluate
from spare_core.evaluation.report_files import EVALUATION, read_report
from spare_core.method.settings import EraseSettings
from spare_core.runs.compose import compose
from spare_core.runs.erase import erase

_COLUMNS = ("bundle", "UA mean", "UA worst", "IRA", "FID", "residual mean", "residual worst", "mean drift",
            "largest rebound", "s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--withdraw", default="Guitar", choices=EIGHT)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    growth = Growth(options.output)
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    before = None
    for count in range(1, len(EIGHT) + 1):
        before = growth.made(f"{count}: + {EIGHT[count - 1]}", EIGHT[:count], f"grown-{count}", before=before)
    assert before is not None
    growth.shrunk(options.withdraw, before)
    for seed in (1, 2):
        growth.made(f"seed {seed}", EIGHT, f"seed-{seed}", seed)
    for order in (1, 2):
        names = random.Random(order).sample(EIGHT, len(EIGHT))
        growth.made(f"order {order}", names, f"order-{order}")
    print(f"\n{options.output / f'grown-{len(EIGHT)}-evaluation' / 'matrix.png'}")


class Growth:
    """Bundles and evaluations in one folder."""

    def __init__(self, output: Path) -> None:
        self.output, self.bench = output, Bench(1, 0)

    def made(
        self, label: str, names: Sequence[str], folder: str, seed: int = 0, before: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The bundle of these concepts, and its evaluation."""
        erasures = Erasures(*map(erasure_of, names), bundle=True)
        started = time.perf_counter()
        manifest = erase("canvas", erasures, EraseSettings(seed=seed), self.output / folder)
        report = self.measured(folder, before)
        # Of an adapter that was there already, what its stages took; else the loading too.
        spent = max(time.perf_counter() - started - sum(report["seconds"].values()), sum(manifest["seconds"].values()))
        print(row(label, report, spent), flush=True)
        return report

    def shrunk(self, name: str, before: Mapping[str, Any]) -> None:
        """The last grown one without a concept, and what the judge then sees of that concept."""
        started, folder = time.perf_counter(), f"without-{name}"
        champion = self.output / f"grown-{len(EIGHT)}"
        manifest = compose("canvas", [champion], self.output / folder, EraseSettings(), without=[name])
        spent = time.perf_counter() - started
        print(row(f"without {name}", self.measured(folder, before), spent), flush=True)
        again = self.measured(folder, erased=[name], place=f"{folder}-judged")
        sides = {side: again[side]["ua"] for side in ("base", "adapted")}
        print(f"\n{name}: {manifest['withdrawn'][name]['moved']:.3f} from the base model, UA {sides}\n")

    def measured(
        self, folder: str, before: Mapping[str, Any] | None = None, erased: Sequence[str] = (), place: str = ""
    ) -> dict[str, Any]:
        """The evaluation of a bundle."""
        bench, output = self.bench, self.output / (place or f"{folder}-evaluation")
        if (output / EVALUATION).is_file():
            return read_report(output)
        stored = load_adapter(self.output / folder)
        digest = bench.denoiser.files.digest()
        return evaluate(bench.denoiser, digest, [stored], bench.suite, erased, None, output, bench.judge, before=before)


def row(label: str, report: Mapping[str, Any], seconds: float) -> str:
    """A line of the table; a rebound is a residual as a multiple of what it was when its concept was added."""
    forgotten = [1 - one["after"]["accuracy"] for one in report["per_concept"] if one["erased"]]
    risen = [(one["now"] / one["then"], one["concept"]) for one in report["rebounds"]]
    rebound = "" if not risen else "{:.2f} ({})".format(*max(risen))
    adapted = report["adapted"]
    return (
        f"| {label} | {adapted['ua']:.3f} | {min(forgotten):.2f} | {adapted['ira']:.3f} "
        f"| {adapted['fid']:.2f} | {report['residual']:.3f} | {max(report['residuals'].values()):.3f} "
        f"| {report['mean_drift']:.4f} | {rebound} | {seconds:.1f} |"
    )


if __name__ == "__main__":
    main()
