"""A compiled pipeline under KFP's Docker runner, in a process of its own: ``python -m image.docker_runner``, JSON on
stdin.

Each task is a container of the image, held as tightly as Kubernetes' restricted Pod Security asks and a little more:
not root, no capability, a root file system that cannot be written to. All that a task may write is what KFP mounts for
it and /tmp.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local.pipeline_orchestrator import run_local_pipeline

from pipelines.definition import read_definition


def confinement(network: str) -> dict[str, Any]:
    """What docker-py's ``containers.run`` takes to hold a container so, on a network."""
    return {
        "network": network,
        "read_only": True,
        "tmpfs": {
            "/tmp": "rw,nosuid,nodev,mode=1777",
            "/var/cache/spare": "rw,nosuid,nodev,noexec,uid=65532,gid=65532",
        },
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "shm_size": "1g",
    }


def options(network: str) -> list[str]:
    """How a container is held, as options of the command ``docker run``."""
    how = confinement(network)
    tmpfs = [part for path, mount in how["tmpfs"].items() for part in ("--tmpfs", f"{path}:{mount}")]
    return ["--network", network, "--read-only", *tmpfs, "--cap-drop", *how["cap_drop"], "--security-opt",
            *how["security_opt"], "--shm-size", how["shm_size"]]  # fmt: skip


def main() -> None:
    """Run; exit 0 if every task succeeded."""
    asked = json.loads(sys.stdin.read())
    warnings.simplefilter("ignore")  # what KFP says of settings that only a cluster minds
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    os.umask(0)  # what is made here is written to by the image's user
    root = Path(asked["root"])
    for folder in ("runs", "workspace"):  # where none is, Docker makes one that is root's
        (root / folder).mkdir(parents=True)
    # With an entry point of its own an image takes KFP's command as arguments; on Kubernetes a command replaces it.
    runner = local.DockerRunner(entrypoint=[], environment=asked["environment"], **confinement(asked["network"]))
    local.init(runner, str(root / "runs"), str(root / "workspace"))
    try:
        run_local_pipeline(read_definition(Path(asked["pipeline"])).pipeline, asked["arguments"])
    except RuntimeError as error:  # KFP's word for a task that failed
        print(error, flush=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
