"""Takedown lists on Canvas, from the list to the champion: ``spare takedown run``.

    python -m benchmarks.takedowns --counts 1 2 4 8 --output out/takedowns

The eight concepts of benchmarks/bundles.py: one with a surrogate that the planner chooses, one with two aliases. The
list of eight has its traps besides: a counter-notice, a duplicate, a legal hold and a bad row. It is then run again,
which must do nothing, and one of the eight is withdrawn. Each list has a folder, registry and store of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.bundles import EIGHT, erasure_of
from spare_core.evaluation.report_files import read_report

COLUMNS = ("requests", "s", "s a request", "erasing each", "bundle", "UA mean", "UA worst", "IRA", "base", "CRA",
           "base")  # fmt: skip
ALIASES = {"Red Blue Ink": ["Red Ink", "Blue Ink"]}
AUTO = "Neon Lines"
EXPECTED = {**{f"T-{i}": "done" for i in range(1, 9)}, "T-9": "withdrawn", "C-9": "done", "T-10": "done",
            "T-11": "blocked"}  # fmt: skip
WITHDRAWN = "T-6"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=1, help="of the judge's grid, of five")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for count in options.counts:
        folder = options.output / str(count)
        done = run(folder, rows(count), options.seeds)
        print(line(count, done), flush=True)
        if count == len(EIGHT):
            traps(folder, done, options.seeds)


def rows(count: int) -> list[dict[str, Any]]:
    """So many requests; with all eight, the traps too."""
    listed = [
        row(f"T-{i}", concept, "auto" if concept == AUTO else erasure_of(concept).surrogate, ALIASES.get(concept, ()))
        for i, concept in enumerate(EIGHT[:count], 1)
    ]
    if count < len(EIGHT):
        return listed
    return [
        *listed,
        row("T-9", "Butterfly", "Bird"),
        {**row("C-9", "", ""), "counter_notice_of": "T-9"},
        row("T-10", "cat", "Dog"),
        {**row("T-11", "Mosaic", "Photo"), "legal_hold": True},
        {**row("T-12", "Frog", "Bird"), "regime": "hearsay"},
    ]


def row(request_id: str, concept: str, surrogate: str, aliases: Any = ()) -> dict[str, Any]:
    values = {"request_id": request_id, "concept": concept, "surrogate": surrogate, "aliases": list(aliases),
              "regime": "gdpr", "received_at": f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
              "requester": f"case-{request_id}"}  # fmt: skip
    return {name: value for name, value in values.items() if value}


def run(folder: Path, listed: list[dict[str, Any]], seeds: int, name: str = "list.yaml") -> dict[str, Any]:
    """What ``spare takedown run`` prints; started anew, so with its imports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(listed))
    command = [sys.executable, "-P", "-m", "spare_core.cli", "takedown", "run", name, f"seeds={seeds}",
               "skip_invalid=true", "--output", "results", "--json"]  # fmt: skip
    services = ("MLFLOW_TRACKING_URI", "SPARE_STORE", "SPARE_CHECKPOINTS")
    bare = {key: value for key, value in os.environ.items() if key not in services}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=bare, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return {**json.loads(done.stdout), "wall": seconds}


def line(count: int, done: dict[str, Any]) -> str:
    report = read_report(Path(done["results"]["register"]["evaluation"]))
    each = sum(seconds for name, seconds in done["seconds"].items() if name.startswith("take down"))
    parts = sum(done["seconds"][name] for name in ("compose", "evaluate", "register", "gate", "promote"))
    worst = min(1 - one["after"]["accuracy"] for one in report["per_concept"] if one["erased"])
    figures = [f"{report[side][name]:.3f}" for name in ("ira", "cra") for side in ("adapted", "base")]
    cells = (count, f"{done['wall']:.0f}", f"{done['wall'] / count:.1f}", f"{each:.0f}", f"{parts:.0f}",
             f"{report['adapted']['ua']:.3f}", f"{worst:.2f}", *figures)  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def traps(folder: Path, done: dict[str, Any], seeds: int) -> None:
    """The traps' states, the same list again, and one request withdrawn."""
    check(states(done), EXPECTED, "after the first run")
    print(f"\nleft out: {done['results']['plan']['left_out']}")
    again = run(folder, yaml.safe_load((folder / "list.yaml").read_text()), seeds)
    check(states(again), EXPECTED, "after the same list again")
    entries = [one["results"]["close"]["head"].partition(":")[0] for one in (done, again)]
    print(f"again: {again['wall']:.0f} s, entries {' and '.join(entries)}, stages {', '.join(again['results'])}")
    notice = {**row("C-6", "", ""), "counter_notice_of": WITHDRAWN}
    less = run(folder, [notice], seeds, "notice.yaml")
    check(states(less), {**EXPECTED, WITHDRAWN: "withdrawn", "C-6": "done"}, "after the withdrawal")
    report = read_report(Path(less["results"]["register"]["evaluation"]))
    told = {one["concept"]: round(one["after"]["accuracy"], 2) for one in report["per_concept"] if
            one["concept"] in EIGHT}  # fmt: skip
    print(f"{WITHDRAWN} withdrawn in {less['wall']:.0f} s; accuracy now: {told}")


def states(done: dict[str, Any]) -> dict[str, str]:
    return {one["request_id"]: one["state"] for one in done["requests"]}


def check(found: dict[str, str], expected: dict[str, str], when: str) -> None:
    if found != expected:
        sys.exit(f"{when}: {found}; expected {expected}")
    print(f"{when}: every request as expected")


if __name__ == "__main__":
    main()
