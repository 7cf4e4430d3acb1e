"""Ways to make one adapter of many, side by side: what the judge sees, what they cost.

    python -m benchmarks.bundles --counts 1 2 4 8 --ranks 8 --output out/bundles

Eight Canvas concepts, four styles and four objects, erased one at a time first (adapters that are there are not made
again). ``worst`` is the concept that is forgotten least.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from benchmarks.ablation import CONCEPTS, Bench
from spare_core.adapters.algebra import concatenated
from spare_core.adapters.directory import load_adapter
from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.evaluation.findings import Question, findings
from spare_core.evaluation.grid import draw_grid
from spare_core.evaluation.suite import DOMAINS
from spare_core.method.settings import EraseSettings
from spare_core.runs.compose import Candidate, ways
from spare_core.runs.erase import erase
from spare_core.runs.request import build_request
from spare_core.runs.stages import Work, make_repeatable, peak_memory

EIGHT = ("Neon Lines", "Cat", "Winter", "Tower", "Red Blue Ink", "Guitar", "Rust", "Jellyfish")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[8], help="how many of the eight, in turn")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    parser.add_argument("--seeds", type=int, default=1, help="of the judge's grid, of five; 0: no judge")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    make_repeatable()
    parts = [part(name, options.output / name.replace(" ", "-")) for name in EIGHT[: max(options.counts)]]
    bench = Bench(options.seeds or 1, 0)
    columns = ("concepts", "way", "rank", "UA mean", "UA worst", "IRA", "CRA", "FID", "residual mean", "residual worst",
               "mean drift", "s", "peak MB")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for count in options.counts:
        erasures = Erasures(*(erasure for erasure, _ in parts[:count]))
        if options.seeds:
            print(f"| {count} | nothing | | {judged(bench, erasures, None)} | | | | | |", flush=True)
        for rank in options.ranks:
            roomy = build_request("canvas", erasures, EraseSettings(rank=len(EIGHT)))
            request = dataclasses.replace(roomy, settings=EraseSettings(rank=rank, alpha=float(rank)))
            exact = concatenated([adapter for _, adapter in parts[:count]])
            with tempfile.TemporaryDirectory() as folder:
                found = ways(Work(request, bench.denoiser), Path(folder), exact)
            for way in found:
                seen = judged(bench, erasures, way) if options.seeds else " | | | |"
                print(line(count, way, seen), flush=True)


def part(concept: str, folder: Path) -> tuple[Erasure, Adapter]:
    """One concept's erasure and its adapter."""
    erasure = erasure_of(concept)
    erase("canvas", Erasures(erasure), EraseSettings(), folder)
    return erasure, load_adapter(folder).adapter


def erasure_of(concept: str) -> Erasure:
    """The erasure of a concept as the other benchmarks erase it."""
    kind, _, surrogate = next(one for one in CONCEPTS if one[1] == concept)
    return build_erasure("canvas", concept, surrogate, kind)  # type: ignore[arg-type]


def judged(bench: Bench, erasures: Erasures, way: Candidate | None) -> str:
    """UA mean and worst, IRA, CRA and FID, as columns."""
    adapters: list[Adapter] = [] if way is None else [way.adapter]
    after = draw_grid(bench.denoiser, bench.suite, bench.judge, adapters) if adapters else bench.base
    suite = bench.suite
    rows = {kind: tuple(i for i, name in enumerate(suite.names(kind)) if erasures.erased(name)) for kind in DOMAINS}
    question = Question(suite, {kind: some for kind, some in rows.items() if some})
    found = findings(bench.base, after, question, bench.reference)
    forgotten = [1 - row["after"]["accuracy"] for row in found["per_concept"] if row["erased"]]
    figures = found["adapted"]
    return (
        f"{figures['ua']:.3f} | {min(forgotten):.2f} | {figures['ira']:.3f} | {figures['cra']:.3f} "
        f"| {figures['fid']:.2f}"
    )


def line(count: int, way: Candidate, seen: str) -> str:
    """A row of the table; the seconds are the way's own: examples and probes, which all need, are in those of joint."""
    seconds = way.facts["seconds"]
    peak = peak_memory(way.adapter.parameters()[0].device)["host"] / 1e6
    return (
        f"| {count} | {way.name} | {way.rank} | {seen} | {way.measured.residual:.3f} "
        f"| {way.measured.worst_residual:.3f} | {way.measured.mean_drift:.4f} | {seconds:.1f} | {peak:.0f} |"
    )


if __name__ == "__main__":
    main()
