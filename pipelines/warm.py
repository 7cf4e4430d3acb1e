"""Tasks of KFP's local runner as forks of a process that has imported what they need already.

KFP starts a new Python for each task, and each imports torch, diffusers and MLflow anew: on Canvas, as long again as
the work itself (benchmarks/pipeline_overhead.py). A fork runs the very program that KFP would have started,
``kfp.dsl.executor_main`` with the component's source, in a process of its own, with its own output and exit code.

What is imported grows with what tasks need: the first one, which finds bad parameters and servers that are down, does
not wait for diffusers, and a run that takes what an earlier one computed never does.

Only where forking is sound: on Linux, while no other task is started (a loop's iterations run in a thread of their own,
for which the one that runs the pipeline waits), and with nothing but imports done, so that neither a thread pool of
torch nor CUDA is up.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from kfp.local import subprocess_task_handler

_SERVICES = ("spare_core.takedown.tasks", "mlflow")
_EMBEDDED = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
"""What MLflow imports when it is first asked for anything, if its registry is a database: most of a second."""
_MODEL = ("spare_core.runs.stages", "spare_core.evaluation.html", "peft")
_RUN_THE_MODEL = {"prepare", "timesteps", "saliency", "distill", "compose", "evaluate", "take_down"}
_CALLED = re.compile(r"\btasks\.(\w+)_task\(")
"""How a component of ours calls the core."""
_alone = threading.Lock()
_plain_print = builtins.print
_start_python = subprocess_task_handler.run_local_subprocess


def fork_tasks() -> None:
    """Let KFP's subprocess runner fork its tasks from here on."""
    if sys.platform == "linux":
        subprocess_task_handler.run_local_subprocess = _run


def end_with(parent: int) -> None:
    """End this group of processes as soon as the parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _import_for(source: str) -> None:
    """Import what a task with this source will; nothing for one that is not ours."""
    called = {*_CALLED.findall(source)}
    names = [*(_SERVICES if called else ()), *(_MODEL if called & _RUN_THE_MODEL else ())]
    if called and not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        names += _EMBEDDED
    if all(name in sys.modules for name in names):
        return
    for name in names:
        importlib.import_module(name)
    if called & _RUN_THE_MODEL:
        from diffusers import StableDiffusionPipeline  # noqa: F401 diffusers imports a class when it is first asked for
    gc.collect()
    gc.freeze()


def _run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
    """What KFP's function of this place does: run a task, print its output, return its exit code."""
    shell, _, _, source, *arguments = full_command if len(full_command) > 4 else ["", "", "", ""]
    if shell != "sh" or "def " not in source or not _alone.acquire(blocking=False):
        return int(_start_python(full_command, env_vars))
    try:
        return _fork(source, arguments, env_vars or {})
    finally:
        _alone.release()


def _fork(source: str, arguments: list[str], env_vars: dict[str, str]) -> int:
    _import_for(source)
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    runner = os.getpid()
    task = os.fork()
    if task == 0:
        os.close(reading)
        # The runner may die first, of a pipe that nobody reads any more, before it sees that it should end us.
        threading.Thread(target=end_with, args=(runner,), daemon=True).start()
        os._exit(_task(writing, source, arguments, env_vars))
    os.close(writing)
    with os.fdopen(reading, errors="replace") as output:
        for line in output:
            print(line, end="")
    return os.waitstatus_to_exitcode(os.waitpid(task, 0)[1])


def _task(writing: int, source: str, arguments: list[str], env_vars: dict[str, str]) -> int:
    """The forked process: no exception leaves it."""
    from kfp.dsl.executor_main import executor_main

    builtins.print = _plain_print  # KFP indents what the parent prints
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger().handlers.clear()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.environ.update(env_vars | {"_KFP_RUNTIME": "true"})
    try:
        with tempfile.TemporaryDirectory() as folder:
            module = Path(folder) / "ephemeral_component.py"
            module.write_text(source, encoding="utf-8")
            sys.argv = ["executor_main", "--component_module_path", str(module), *arguments]
            executor_main()
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
