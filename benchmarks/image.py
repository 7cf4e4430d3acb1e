"""How large the image is, and how long until a task in it starts to work: ``python -m benchmarks.image --device cpu``.

Each start is a container of its own, held as a cluster would hold it, whose Python imports what the task does before
its first line of ours; median of several, the container's own start included. On a node that has not run the image
before, the time to pull it comes on top.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Final

from image.build import DEVICES, ROOT, VERSION, build, size
from image.docker_runner import options
from image.engine import docker, engine

STARTS: Final = {
    "the container alone": ("true",),
    "`spare --help`": ("spare", "--help"),
    "a task that talks to services (validate, gate, promote)": (
        "python3", "-c", "import kfp.dsl.executor_main, spare_core.workflow.tasks"
    ),
    "a task that runs the model (prepare, distill, evaluate)": (
        "python3", "-c", "import kfp.dsl.executor_main, spare_core.workflow.tasks, spare_core.runs.stages; "
        "from diffusers import StableDiffusionPipeline"
    ),
}  # fmt: skip
PARTS: Final = {
    "torch": "torch", "MLflow and what it needs (pyarrow, pandas, scikit-learn, scipy)":
    "mlflow pyarrow pandas sklearn scipy scipy.libs", "transformers and diffusers": "transformers diffusers",
    "SPARE with Canvas": "spare_core pipelines",
}  # fmt: skip


def started(host: dict[str, str], tag: str, command: tuple[str, ...]) -> float:
    """Seconds of one container."""
    begin = time.perf_counter()
    docker(host, "run", "--rm", *options("none"), "--entrypoint", command[0], tag, *command[1:])
    return time.perf_counter() - begin


def megabytes(host: dict[str, str], tag: str, paths: str) -> float:
    """Megabytes of what lies there, unpacked."""
    told = docker(host, "run", "--rm", "--network=none", "--entrypoint", "sh", tag, "-c", f"du -cksx {paths} | tail -1")
    return int(told.stdout.split()[0]) / 1e3


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    tag, site = f"spare:{VERSION}", "/opt/spare/lib/python3.11/site-packages"
    with engine(ROOT / "out" / "docker") as host:
        build(host, given.device, tag)
        print("| part | MB |\n|---|---|")
        for name, packages in PARTS.items():
            paths = " ".join(f"{site}/{package}" for package in packages.split())
            print(f"| {name} | {megabytes(host, tag, paths):.0f} |")
        print(f"| all Python packages | {megabytes(host, tag, '/opt/spare'):.0f} |")
        print(f"| the whole image | {size(host, tag) / 1e6:.0f} |\n\n| what starts | s |\n|---|---|")
        for name, command in STARTS.items():
            seconds = [started(host, tag, command) for _ in range(given.repeats)]
            print(f"| {name} | {statistics.median(seconds):.1f} |")


if __name__ == "__main__":
    main()
