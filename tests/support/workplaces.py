"""A folder in which the committed pipeline is run again and again, as small as it gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipelines.definition import SPARE
from tests.support.forking import Command, popen

SETTINGS = {
    "steps": 4, "lr": 1e-3, "measure_every": 2, "examples": 4, "retain_examples": 4, "heldout": 3, "example_steps": 2,
    "batch_size": 2, "saliency_batches": 1, "bins": 4, "rank": 2, "mask": "channel",
    "failed_above": 100.0, "prior_texts": 40,
}  # fmt: skip
LENIENT = {
    "intervals": False, "min_samples": 1, "min_ua": 0.0, "max_ira_loss": 1.0, "max_cra_loss": 1.0, "fid": False,
    "max_fid_rise": 1.0, "max_mean_drift": 1e5, "max_drift": 1e5,
    "max_drift_of": {}, "attack_budget": "quick", "max_attack_success": {}, "max_damaged": 1.0, "min_surrogate": 0.0,
    "max_residual": 1e6, "max_cra_erased_loss": 1.0, "max_concept_loss": 1.0, "max_damaged_erased": 1.0,
    "min_judge_accuracy": 0.0, "max_rebound": 1e6, "rebound_from": 1.0,
}  # fmt: skip


class Workplace:
    """A folder in which the same pipeline is run again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.pipeline = folder, folder / "results", SPARE
        self.first: dict[str, Any] = {}
        self.settings: dict[str, Any] = SETTINGS
        self.command = ["run"]
        suite = {"extends": "canvas", "styles": ["Neon Lines", "Photo", "Rust"], "objects": ["Cat", "Dog"], "steps": 2}
        for name, content in (("suite", suite), ("lenient", LENIENT), ("strict", {**LENIENT, "max_mean_drift": 0.0})):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        (folder / "pipelines").mkdir(exist_ok=True)  # as whoever works with KFP may have
        (folder / "pipelines" / "__init__.py").write_text("raise ImportError('the user\\'s own')")
        unset = ("MLFLOW_TRACKING_URI", "SPARE_STORE", "SPARE_CHECKPOINTS")
        self.environment = {name: value for name, value in os.environ.items() if name not in unset}
        self.arguments = [
            "model=canvas", "erase=neon lines", "surrogate=Photo", "keep=[Rust]", f"settings={json.dumps(SETTINGS)}",
            "suite=suite.yaml", "seeds=1",
        ]  # fmt: skip

    def start(self, *more: str, policy: str = "lenient", **environment: str) -> Command:
        """``spare run`` at work, or another command that takes a pipeline's parameters; a fork (see ``forking``)."""
        return popen([*self._command(policy), *more], self.folder, {**self.environment, **environment})

    def _command(self, policy: str) -> list[str]:
        spare = [sys.executable, "-P", "-m", "spare_core.cli", *self.command]
        file = ["-f", str(self.pipeline)] if self.command == ["run"] else []
        return [*spare, *file, "--output", "results", "--json", *self.arguments, f"policy={policy}.yaml"]

    def run_in_a_fresh_python(self) -> subprocess.CompletedProcess[str]:
        """``spare run`` to its end as a user starts it: all processes import what they need themselves."""
        return subprocess.run(
            self._command("lenient"), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )

    def run(self, *more: str, policy: str = "lenient", **environment: str) -> subprocess.CompletedProcess[str]:
        """``spare run`` to its end."""
        process = self.start(*more, policy=policy, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def stop_in(self, stage: str, how: signal.Signals) -> tuple[int, list[psutil.Process]]:
        """Send a signal to ``spare run`` once a stage is at work; its exit code, and what was running below it."""
        process = self.start()
        wait_for_stage(process, stage)
        time.sleep(0.1)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        process.communicate(timeout=60)
        return process.returncode, below

    def run_and_break(self, stage: str, broken: Callable[[], None], **environment: str) -> tuple[int, str]:
        """``spare run`` to its end, with something broken as soon as a stage is at work; exit code and stderr."""
        process = self.start(**environment)
        wait_for_stage(process, stage)
        broken()
        _, err = process.communicate(timeout=300)
        return process.returncode, err

    @property
    def tracking(self) -> str:
        """The embedded MLflow."""
        return f"sqlite:///{self.output / 'registry' / 'mlflow.db'}"

    def client(self) -> Any:
        """MLflow's own, to see what is there."""
        from mlflow import MlflowClient

        return MlflowClient(self.tracking, self.tracking)


def wait_for_stage(process: Command, stage: str) -> None:
    """Until ``spare run`` says that a stage is at work."""
    assert process.stderr
    heard = []
    for line in process.stderr:
        if f"{stage} " in line and "started" in line:
            return
        heard.append(line)
    raise AssertionError(f"{stage} never started; it said:\n{''.join(heard)}")


def wait_until(holds: Callable[[], bool], what: str, process: Command) -> None:
    """Until something is true while a command is at work: a test that kills it there depends on no timing."""
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, f"it ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"in two minutes it never came true: {what}"
        time.sleep(0.02)
