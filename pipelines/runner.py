"""A compiled pipeline under KFP's local runner, in a process of its own: ``python -m pipelines.runner``, JSON on stdin.

KFP's runner keeps its state in globals, replaces ``print`` while it works and does not end its tasks when it is
interrupted. Here all that lies in one process group, which ends when the one who started it does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from pathlib import Path

from kfp import local
from kfp.local.pipeline_orchestrator import run_local_pipeline

from pipelines.definition import read_definition
from pipelines.warm import end_with, fork_tasks


def main() -> None:
    """Run; exit 0 if every task succeeded."""
    asked = json.loads(sys.stdin.read())
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    warnings.simplefilter("ignore")  # what KFP says of settings that only a cluster minds
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    fork_tasks()
    root = Path(asked["root"])
    local.init(
        local.SubprocessRunner(use_venv=False), str(root / "runs"), str(root / "workspace"), enable_caching=True,
        cache_root=str(root / "cache"),
    )  # fmt: skip
    try:
        # Not by calling the loaded pipeline: that refuses the first value of a wrong type, and the pipeline's own first
        # task names all of them.
        run_local_pipeline(read_definition(Path(asked["pipeline"])).pipeline, asked["arguments"])
    except RuntimeError as error:  # KFP's word for a task that failed
        print(error, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
