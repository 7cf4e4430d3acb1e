"""The demo over a network: a real MLflow server, and a real S3 API that everything which outlives a run goes through.

    make demo-services        or        python -m serving.demo_services --output DIR [--hold]

Both servers are started on this machine and end with the command; ``--hold`` keeps them until Enter is pressed, to look
at MLflow's pages. What they held is gone then, the run's own folder stays.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from serving.services import mlflow_server, s3_server
from spare_core.canvas.protocol import CANVAS
from spare_core.concepts.lists import build_erasure
from spare_core.store import open_store

BUCKET = "spare"
MODEL = f"s3://{BUCKET}/models/canvas"
STORE = f"s3://{BUCKET}/demo"
FOLDERS = {
    "models/": "the base model, which every task reads from here",
    "demo/requests/": "what was asked for, checked, by its digest",
    "demo/artifacts/": "adapter, evaluation and pictures, by their digest",
    "demo/evidence/": "which of them belong together, and what the gate found",
    "demo/promotions/": "the promotion log",
    "mlflow/": "MLflow's artifacts: runs and the registered adapter",
}


@contextmanager
def services(folder: Path) -> Iterator[dict[str, str]]:
    """Both servers, their database and logs in ``folder``; yields the environment that SPARE needs."""
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_server(folder, BUCKET))
        uri = stack.enter_context(mlflow_server(folder, "sqlite:///mlflow.db", f"s3://{BUCKET}/mlflow", s3))
        yield {**s3, "MLFLOW_TRACKING_URI": uri, "SPARE_STORE": STORE}


def arguments() -> list[str]:
    """Parameters of the demo for Canvas as a model in S3, which knows nothing of itself."""
    erasure = build_erasure("canvas", "Neon Lines", "Pencil Drawing", "style")
    return [
        f"model={MODEL}", f"erase={erasure.concept}", f"surrogate={erasure.surrogate}", "kind=style", "suite=canvas",
        "seeds=1", f"template={erasure.template}", f"keep={json.dumps(erasure.keep)}",
        f"contexts={json.dumps(erasure.contexts)}",
    ]  # fmt: skip


def run(environment: dict[str, str], output: Path, given: Sequence[str]) -> int:
    """``spare run`` with the base model in S3; then what is in the bucket. The exit code."""
    os.environ.update(environment)
    os.environ["SPARE_CACHE"] = str((output / "cache").absolute())
    open_store(MODEL).upload(CANVAS.pipeline, "")
    spare = [sys.executable, "-P", "-m", "spare_core.cli"]
    done = subprocess.run([*spare, "run", "--output", str(output), *given], check=False)
    if done.returncode:
        return done.returncode
    entries = open_store(f"s3://{BUCKET}").entries("")
    print(f"\nin s3://{BUCKET}:")
    for prefix, what in FOLDERS.items():
        sizes = [entry.size for entry in entries if entry.key.startswith(prefix)]
        print(f"{len(sizes):5} objects {sum(sizes) / 1e6:8.2f} MB  {prefix:17} {what}")
    names = {key.split("/")[1] for key in open_store(STORE).list("promotions")}
    return max(subprocess.run([*spare, "registry", "history", name, "--verify"], check=False).returncode
               for name in names)  # fmt: skip


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("spare-demo-services"), help="folder of the run")
    parser.add_argument("--hold", action="store_true", help="keep the servers until Enter is pressed")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended like that too, it ends its servers
    try:
        return _run_between(given.output, given.hold)
    except KeyboardInterrupt:
        return 130


def _run_between(output: Path, hold: bool) -> int:
    """Start the servers, run, and end them; the exit code."""
    with tempfile.TemporaryDirectory(prefix="spare-services-") as folder, services(Path(folder)) as environment:
        code = run(environment, output, arguments())
        if hold:
            exports = " ".join(f"{name}={value}" for name, value in environment.items())
            input(f"for another shell: export {exports}\nEnter ends both servers")
        else:
            print("both servers have ended now; --hold keeps them, to look further")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
