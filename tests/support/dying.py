"""A promotion or registration that kills itself, as by SIGKILL, at the nth call of a method of MLflow's client.

``python -m tests.support.dying METHOD N before|after promote NAME VERSION STORE`` or
``… register ADAPTER EVALUATION REQUEST STORE``
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from spare_core.evaluation.gate import Policy
from spare_core.registry.promotions import promote
from spare_core.registry.registering import register
from spare_core.registry.tracking import stage_run
from spare_core.store import open_store


def arm(method: str, nth: int, when: str) -> None:
    """Make the nth call of the method deadly."""
    original, calls = getattr(MlflowClient, method), []

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        if len(calls) == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(MlflowClient, method, deadly)


def main(method: str, nth: str, when: str, what: str, *arguments: str) -> None:
    """Arm, then do it."""
    arm(method, int(nth), when)
    if what == "promote":
        name, version, store = arguments
        promote(name, int(version), open_store(store), "the one who dies", Policy.from_file())
    else:
        adapter, evaluation, request, store = arguments
        with stage_run(request, "register", "kfp-1") as run:
            register(run, open_store(store), Path(adapter), Path(evaluation))


if __name__ == "__main__":
    main(*sys.argv[1:])
