"""The committed pipeline really runs here: it survives being killed anywhere, takes what is done, and says what failed.

One folder of results for the whole module; a run takes about five seconds a task.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from spare_core.store import open_store
from tests.mlflow_servers import Server

pytest_plugins = ("tests.mlflow_fixtures",)

SETTINGS = {
    "steps": 4, "measure_every": 2, "examples": 4, "retain_examples": 4, "heldout": 3, "example_steps": 2,
    "batch_size": 2, "saliency_batches": 1, "bins": 4, "rank": 2,
}  # fmt: skip
STAGES = ("validate", "prepare", "timesteps", "saliency", "distill", "evaluate", "register", "gate", "promote")
COMPUTED = STAGES[1:6]
LENIENT = {
    "intervals": False, "min_samples": 1, "min_ua": 0.0, "max_ira_loss": 1.0, "max_cra_loss": 1.0, "fid": False,
    "max_fid_rise": 1.0, "max_mean_drift": 1e5, "max_drift": 1e5,
    "max_drift_of": {}, "max_damaged": 1.0,
}  # fmt: skip


class Workplace:
    """A folder in which the same pipeline is run again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "results"
        self.first: dict[str, Any] = {}
        suite = {"extends": "canvas", "styles": ["Neon Lines", "Photo", "Rust"], "objects": ["Cat", "Dog"], "steps": 2}
        for name, content in (("suite", suite), ("lenient", LENIENT), ("strict", {**LENIENT, "min_ua": 1.0})):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        (folder / "pipelines").mkdir(exist_ok=True)  # as whoever works with KFP may have
        (folder / "pipelines" / "__init__.py").write_text("raise ImportError('the user\\'s own')")
        unset = ("MLFLOW_TRACKING_URI", "SPARE_STORE", "SPARE_CHECKPOINTS")
        self.environment = {name: value for name, value in os.environ.items() if name not in unset}
        self.arguments = [
            "model=canvas", "erase=neon lines", "surrogate=Photo", "keep=[Rust]", f"settings={json.dumps(SETTINGS)}",
            "suite=suite.yaml", "seeds=1",
        ]  # fmt: skip

    def start(self, *more: str, policy: str = "lenient", **environment: str) -> subprocess.Popen[str]:
        """``spare run`` at work."""
        command = [
            sys.executable,
            "-P",
            "-m",
            "spare_core.cli",
            "run",
            "--output",
            "results",
            "--json",
            *self.arguments,
        ]
        return subprocess.Popen(
            [*command, f"policy={policy}.yaml", *more], cwd=self.folder, env={**self.environment, **environment},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Tests that a shell runs in the background ignore Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *more: str, policy: str = "lenient", **environment: str) -> subprocess.CompletedProcess[str]:
        """``spare run`` to its end."""
        process = self.start(*more, policy=policy, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def stop_in(self, stage: str, how: signal.Signals) -> tuple[int, list[psutil.Process]]:
        """Send a signal to ``spare run`` once a stage is at work; its exit code, and what was running below it."""
        process = self.start()
        assert process.stderr
        for line in process.stderr:
            if f"{stage} " in line and "started" in line:
                break
        else:
            raise AssertionError(f"{stage} never started")
        time.sleep(0.3)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        process.communicate(timeout=60)
        return process.returncode, below

    @property
    def tracking(self) -> str:
        """The embedded MLflow."""
        return f"sqlite:///{self.output / 'registry' / 'mlflow.db'}"

    def client(self) -> Any:
        """MLflow's own, to see what is there."""
        from mlflow import MlflowClient

        return MlflowClient(self.tracking, self.tracking)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Killed once in the middle of each stage, then run to the end."""
    place = Workplace(tmp_path_factory.mktemp("local"))
    for stage in STAGES:
        code, below = place.stop_in(stage, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert len(below) >= 2, "the runner, and a task below it"
        _, alive = psutil.wait_procs(below, timeout=10)
        assert alive == [], f"{stage}: processes outlive the one that started them"
    done = place.run()
    assert done.returncode == 0, done.stderr
    place.first = json.loads(done.stdout)
    return place


def parent(place: Workplace) -> Any:
    """MLflow's run of the request."""
    client = place.client()
    (experiment,) = client.search_experiments(filter_string="name = 'spare'")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    request_id = place.first["results"]["validate"]["request_id"]
    above = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    (found,) = (run for run in above if run.data.tags["spare.request_id"] == request_id)
    return found


def test_after_kills_in_every_stage_there_is_one_version_and_it_is_champion(place: Workplace) -> None:
    client = place.client()
    (model,) = client.search_registered_models()
    assert model.name == "spare.canvas.neon-lines"
    assert [version.version for version in client.search_model_versions(f"name = '{model.name}'")] in (["1"], [1])
    assert {alias: int(version) for alias, version in model.aliases.items()} == {"candidate": 1, "champion": 1}
    assert parent(place).info.status == "FINISHED"


def test_every_stage_left_its_figures_in_mlflow(place: Workplace) -> None:
    client, above = place.client(), parent(place)
    children = client.search_runs(
        [above.info.experiment_id], f"tags.mlflow.parentRunId = '{above.info.run_id}'", max_results=1000
    )
    finished = {run.data.tags["spare.stage"]: run for run in children if run.info.status == "FINISHED"}
    assert {*finished} == {*STAGES}
    losses = client.get_metric_history(finished["distill"].info.run_id, "loss/forget")
    assert max(metric.step for metric in losses) == 4
    assert {"residual", "mean_drift", "seconds"} <= finished["distill"].data.metrics.keys()
    assert {"ua/base", "ua/adapted", "ira/adapted", "cra/adapted"} <= finished["evaluate"].data.metrics.keys()
    pictures = {item.path for item in client.list_artifacts(finished["evaluate"].info.run_id)}
    assert {"evaluation.json", "contact_sheet.png", "evaluation.html"} <= pictures


def test_the_promoted_adapter_draws_by_its_alias(place: Workplace) -> None:
    """In a process that knows only the printed address, as the printed command does."""
    code = (
        "import mlflow; m = mlflow.pyfunc.load_model('models:/spare.canvas.neon-lines@champion');"
        "print(m.predict(['A Cat image in Photo style.'], params={'num_inference_steps': 2})[0][:4])"
    )
    environment = {**place.environment, "MLFLOW_TRACKING_URI": place.tracking}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == repr(b"\x89PNG")


def test_run_again_it_takes_what_is_done_and_registers_nothing_twice(place: Workplace) -> None:
    done = place.run()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [stage for stage, seconds in report["seconds"].items() if seconds is None] == [*COMPUTED]
    assert done.stderr.count("taken from an earlier run") == len(COMPUTED)
    assert (report["results"]["register"]["version"], report["results"]["register"]["created"]) == (1, False)
    assert report["results"]["promote"]["moved"] is False


def test_what_the_gate_refuses_is_not_promoted_and_exits_with_3(place: Workplace) -> None:
    """Everything computed is taken: only the policy is another."""
    refused = place.run(policy="strict")
    assert refused.returncode == 3
    assert refused.stdout == ""
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("error: gate: the gate refuses version 1 of spare.canvas.neon-lines: UA: ")
    assert refused.stderr.count("taken from an earlier run") == len(COMPUTED)
    assert "promote" not in refused.stderr.replace(last, "")
    tags = parent(place).data.tags
    assert parent(place).info.status == "FAILED"
    assert tags["spare.outcome"] == "FAILED"
    assert tags["spare.error.gate"].startswith("GateRefused: the gate refuses version 1")
    assert place.run().returncode == 0, "under the first policy it passes again"


def test_bad_parameters_are_all_named_by_the_first_task_and_nothing_else_runs(place: Workplace) -> None:
    wrong = [
        "model=nowhere", "keep=[Neon Lines]", "contexts=a cat", "seeds=-1", "settings={stpes: 3, seed: -1, rank: four}",
    ]  # fmt: skip
    place_ = Workplace(place.folder)
    place_.arguments = ["erase=Neon Lines", "surrogate=Photo", "kind=style", "suite=suite.yaml", *wrong]
    done = place_.run()
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: validate: ")
    for part in ("nowhere", "erased and to be kept", "contexts is 'a cat'", "seeds is -1", "'stpes'", "seed is -1",
                 "rank is 'four'"):  # fmt: skip
        assert part in last
    began = [line.split()[3] for line in done.stderr.splitlines() if line.endswith("started")]
    assert began == ["validate", "finish"]


def test_ctrl_c_ends_every_process_and_is_recorded(place: Workplace) -> None:
    place_ = Workplace(place.folder)
    place_.arguments = [*place.arguments[:4], f"settings={json.dumps({**SETTINGS, 'seed': 1})}", *place.arguments[5:]]
    code, below = place_.stop_in("prepare", signal.SIGINT)
    assert code == 130
    _, alive = psutil.wait_procs(below, timeout=5)
    assert alive == []
    client = place.client()
    (experiment,) = client.search_experiments(filter_string="name = 'spare'")
    stopped = client.search_runs([experiment.experiment_id], "tags.`spare.outcome` = 'CANCELLED'")
    assert [run.info.status for run in stopped] == ["KILLED"]
    assert stopped[0].data.tags["spare.outcome.message"] == "stopped by the user"


def test_the_environment_sends_the_same_run_to_servers(
    place: Workplace, mlflow_s3_server: Server, bucket: str, s3_endpoint: str
) -> None:
    """A real MLflow server, and the promotion log on a real S3."""
    services = {
        **mlflow_s3_server.environment, "SPARE_STORE": f"s3://{bucket}/prod", "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "a-planted-secret-51c9",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    done = place.run(**services)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["services"]["MLFLOW_TRACKING_URI"] == mlflow_s3_server.uri
    from mlflow import MlflowClient

    name = report["results"]["register"]["name"]
    champion = MlflowClient(mlflow_s3_server.uri, mlflow_s3_server.uri).get_model_version_by_alias(name, "champion")
    assert int(champion.version) == report["results"]["promote"]["aliases"]["champion"]
    log = open_store(f"s3://{bucket}/prod").list("promotions")
    assert [key.rpartition("/")[2] for key in sorted(log)] == ["00000001.json", "00000002.json"]
    assert "a-planted-secret" not in (place.folder / report["log"]).read_text()


def test_an_mlflow_that_is_not_there_is_named_before_anything_runs(place: Workplace) -> None:
    began = time.monotonic()
    done = place.run(MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 1
    assert time.monotonic() - began < 30
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: validate: MLflow at http://127.0.0.1:9 cannot be reached")
    assert "prepare" not in done.stderr


def test_two_runs_do_not_work_in_one_folder(place: Workplace) -> None:
    first = place.start()
    try:
        time.sleep(1.0)
        second = place.run()
        assert second.returncode == 2
        assert "another run is at work in results" in second.stderr
    finally:
        first.communicate(timeout=120)
    assert first.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=canvas"], "erase is missing; give erase=VALUE"),
        (["model=canvas", "erase=x", "surrogate=y", "setps=3"], "unknown parameter 'setps'"),
        (["-f", "suite.yaml", "erase=x"], "is no compiled pipeline"),
        (
            ["--output", "s3://bucket/x", "model=canvas", "erase=x", "surrogate=y"],
            "a local run works in a local folder",
        ),
    ],
)
def test_what_cannot_be_started_is_refused_at_once(place: Workplace, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-P", "-m", "spare_core.cli", "run", "--output", "other", *arguments]
    done = subprocess.run(command, cwd=place.folder, env=place.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (place.folder / "other").exists()
