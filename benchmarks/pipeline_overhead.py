"""What the pipeline costs over ``spare erase`` and ``spare evaluate`` called directly, and where it goes.

    python -m benchmarks.pipeline_overhead [--repeats 1]

Both erase Neon Lines from Canvas and measure it on 240 pictures, as whole processes, each time from an empty folder and
without the cache of the base's pictures. The work of a stage is what its own clock says; the rest of its time in the
pipeline is starting Python, loading libraries and model, and telling MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPARE = [sys.executable, "-m", "spare_core.cli"]
REQUEST = ["--erase", "Neon Lines", "--surrogate", "Pencil Drawing"]
DEMO = ["model=canvas", "erase=Neon Lines", "surrogate=Pencil Drawing", "seeds=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="the median of so many is told")
    repeats = parser.parse_args().repeats
    direct, piped = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            direct.append(run_directly(Path(folder)))
        with tempfile.TemporaryDirectory() as folder:
            piped.append(run_pipeline(Path(folder)))
    stages = [*piped[0][1]]
    total_direct = statistics.median(one[0] for one in direct)
    total_piped = statistics.median(one[0] for one in piped)
    print("| stage | work, directly | in the pipeline |\n|---|---|---|")
    for stage in stages:
        work = statistics.median(one[1].get(stage, 0.0) for one in direct)
        print(f"| {stage} | {work:.1f} s | {statistics.median(one[1][stage] for one in piped):.1f} s |")
    spent = sum(statistics.median(one[1][stage] for one in piped) for stage in stages)
    print(f"| between tasks | | {total_piped - spent:.1f} s |")
    print(f"| whole | {total_direct:.1f} s | {total_piped:.1f} s |")
    print(f"overhead {total_piped - total_direct:.1f} s, {total_piped / total_direct - 1:.0%}")


def run_directly(folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of both commands, and of the work in each stage."""
    adapter, evaluation = folder / "adapter", folder / "evaluation"
    started = time.perf_counter()
    call(folder, "erase", "canvas", *REQUEST, "--output", str(adapter))
    call(
        folder, "evaluate", "canvas", "--adapter", str(adapter), "--erased", REQUEST[1], "--kind", "style",
        "--seeds", "1", "--output", str(evaluation),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    stages = json.loads((adapter / "spare.json").read_text())["seconds"]
    return seconds, stages | {
        "evaluate": sum(json.loads((evaluation / "evaluation.json").read_text())["seconds"].values())
    }


def run_pipeline(folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of the command, and between each stage's first and last word."""
    started = time.perf_counter()
    report = call(folder, "run", "--json", "--output", str(folder / "run"), *DEMO)
    return time.perf_counter() - started, json.loads(report)["seconds"]


def call(folder: Path, *arguments: str) -> str:
    """Stdout of a command of ours, with nothing cached."""
    services = ("MLFLOW_TRACKING_URI", "SPARE_STORE", "SPARE_CHECKPOINTS")
    environment = {name: value for name, value in os.environ.items() if name not in services}
    environment["SPARE_CACHE"] = str(folder / "cache")
    done = subprocess.run([*SPARE, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
