"""Run a compiled pipeline here, through KFP's local runner: no cluster, no server.

Everything lies in one folder: what the tasks wrote and what may be taken again, the log of each run, and, where the
environment names no server, an MLflow of sqlite and a folder, and the promotion log. Retries are left out: they are for
nodes that are lost, and here a failure is reported at once. A loop's iterations run one after the other: two that run a
model beside each other on one machine take longer than both in turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from pipelines.definition import read_definition
from spare_core.errors import OutputError, SpareError
from spare_core.files.atomic import write_bytes, write_json
from spare_core.registry.client import embedded_uri
from spare_core.workflow.environment import CHECKPOINTS, RUN_ID, STORE
from spare_core.workflow.events import read_event

_REUSED: Final = re.compile(r"Task (\S+) cache hit")
"""KFP's runner tells it in its log only."""
_PROGRESS: Final = re.compile(r"\[ *[\d.]+ s\] (.+ \d+/\d+)")
_GRACE_SECONDS: Final = 5.0
_PYTHON: Final = (sys.executable, "-P")
"""Nothing is imported from the folder where the user stands, which may well hold pipelines of their own."""

_FINISH: Final = "spare_core.workflow.tasks import finish_task as end"
_CLOSE: Final = "spare_core.takedown.tasks import close_task as end"
"""What the exit handlers call."""

OnStage = Callable[[str, str], None]
"""Called with a stage's name and what there is to say of it: "started", "done in 3.2 s", "taken from an earlier
run"."""


class RunFailed(SpareError):
    """A task failed; the message is its own, ``exit_code`` that of the error it ended with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class LocalRun:
    """What became of a run: the results that its tasks reported, by stage; seconds, or None for one that was taken.
    ``ending`` imports what its exit handler calls."""

    run_id: str
    log: Path
    environment: dict[str, str]
    ending: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    started: dict[str, float] = field(default_factory=dict)

    def hear(self, line: str, on_stage: OnStage) -> None:
        """Take in one line of the runner's output."""
        if event := read_event(line):
            stage, what = event.pop("stage"), event.pop("event")
            if what == "start":
                self.started[stage] = time.monotonic()
                on_stage(stage, "started")
            elif what == "done":
                self.results[stage] = event
                self.seconds[stage] = round(time.monotonic() - self.started.get(stage, time.monotonic()), 1)
                on_stage(stage, f"done in {self.seconds[stage]} s")
            else:
                self.errors.append({"stage": stage, **event})
                on_stage(stage, "failed")
        elif reused := _REUSED.search(line):
            self.seconds[reused[1]] = None
            on_stage(reused[1], "taken from an earlier run")
        elif progress := _PROGRESS.search(line):
            on_stage("", progress[1])


def run(definition: Path, arguments: dict[str, Any], output: Path, on_stage: OnStage) -> LocalRun:
    """Run a compiled pipeline to its end in the folder ``output``.

    Asked the same again, it takes what earlier runs there have finished. Interrupted, it ends every process that it
    started, records that, and raises KeyboardInterrupt.

    Raises:
        SettingsError: if the file is no compiled pipeline.
        OutputError: if the folder cannot be used, or another run is at work in it.
        RunFailed: with the words and the exit code of the task that failed.
    """
    if str(output).startswith("s3:/"):
        raise OutputError(f"{output}: a local run works in a local folder; for s3:// submit it to a cluster")
    compiled = read_definition(definition)
    with _locked(output):
        root = output.absolute() / "pipeline"
        for component in (compiled.pipeline.root, *compiled.pipeline.components.values()):
            for task in component.dag.tasks.values():
                task.ClearField("retry_policy")
                if task.WhichOneof("iterator"):
                    task.iterator_policy.parallelism_limit = 1
        local_file = root / f"{compiled.name}.json"
        write_json(local_file, json_format.MessageToDict(compiled.pipeline))
        run_id = uuid.uuid4().hex
        log = output.absolute() / "logs" / f"{run_id}.log"
        log.parent.mkdir(exist_ok=True)
        ending = _CLOSE if "comp-close" in compiled.pipeline.components else _FINISH
        this = LocalRun(run_id, log, environment(output) | {RUN_ID: run_id}, ending)
        at_work = output / ".at-work"
        if ending == _CLOSE and at_work.exists():
            # The lock is ours, so that run is dead: what it held in the ledger need not wait for its lease to run out.
            dead = dataclasses.replace(this, environment={**this.environment, RUN_ID: at_work.read_text("utf-8")})
            _record_end(dead, "FAILED", "it was killed")
        write_bytes(at_work, run_id.encode())
        asked = {"root": str(root), "pipeline": str(local_file), "arguments": arguments}
        try:
            succeeded = _execute(this, asked, on_stage)
        finally:
            at_work.unlink()
    if not succeeded:
        raise _failure(this)
    return this


def environment(output: Path) -> dict[str, str]:
    """What tasks need to know of services: those the environment names, or ones that lie in ``output``."""
    services = {
        "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri(output / "registry"),
        STORE: os.environ.get(STORE) or str(_made(output.absolute() / "store")),
        CHECKPOINTS: os.environ.get(CHECKPOINTS) or str(output.absolute() / "checkpoints"),
    }
    return services


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise OutputError(f"cannot work in {output}: {error.strerror}; give another --output") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another run is at work in {output}; wait for it or give another --output") from None
        yield


def _execute(this: LocalRun, asked: dict[str, Any], on_stage: OnStage) -> bool:
    """Whether every task succeeded. No process of the run outlives this call."""
    process = subprocess.Popen(
        [*_PYTHON, "-m", "pipelines.runner"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, **this.environment, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        with this.log.open("w", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                this.hear(line, on_stage)
        return process.wait() == 0
    except KeyboardInterrupt:
        _end(process)
        _record_end(this, "CANCELLED", "stopped by the user")
        raise
    finally:
        _end(process)
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _end(process: subprocess.Popen[str]) -> None:
    """End the runner and all its tasks: they share its process group."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, wanted)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    if process.stdout:
        process.stdout.close()


def _record_end(this: LocalRun, state: str, message: str) -> None:
    """What the exit handler would have done: it was ended with the rest."""
    code = f"from {this.ending}; end({state!r}, {message!r})"
    environment = {**os.environ, **this.environment}
    with contextlib.suppress(subprocess.TimeoutExpired):  # of an MLflow that does not answer; the run ends all the same
        subprocess.run([*_PYTHON, "-c", code], env=environment, capture_output=True, check=False, timeout=30)


def _failure(this: LocalRun) -> RunFailed:
    """The first error that a task reported; that it was killed, where it could report nothing."""
    if this.errors:
        first = this.errors[0]
        return RunFailed(f"{first['stage']}: {first['message']}", int(first["exit_code"]))
    silent = [stage for stage in this.started if stage not in this.results]
    if silent:
        return RunFailed(f"{silent[0]}: its process was killed, perhaps for want of memory; see {this.log}", 1)
    return RunFailed(f"the run failed before any task could say why; see {this.log}", 1)
