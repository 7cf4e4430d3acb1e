"""The committed pipeline really runs here: it survives being killed anywhere, takes what is done, and says what failed.

One folder of results for the whole module; a run takes about five seconds a task.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support import forking
from tests.support.drawing import draw
from tests.support.workplaces import SETTINGS, Workplace

STAGES = ("validate", "prepare", "timesteps", "saliency", "distill", "evaluate", "register", "gate", "promote")
COMPUTED = STAGES[1:6]


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
    done = place.run_in_a_fresh_python()
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
    done = draw(
        "models:/spare.canvas.neon-lines@champion", {**place.environment, "MLFLOW_TRACKING_URI": place.tracking}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == repr(b"\x89PNG")


def test_what_the_gate_refuses_is_not_promoted_and_exits_with_3(place: Workplace) -> None:
    """Everything computed is taken: only the policy is another."""
    refused = place.run(policy="strict")
    assert refused.returncode == 3
    assert refused.stdout == ""
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: gate: the gate refuses version 1 of spare.canvas.neon-lines: mean drift of the kept "
    )
    assert refused.stderr.count("taken from an earlier run") == len(COMPUTED)
    assert "promote" not in refused.stderr.replace(last, "")
    tags = parent(place).data.tags
    assert parent(place).info.status == "FAILED"
    assert tags["spare.outcome"] == "FAILED"
    assert tags["spare.error.gate"].startswith("GateRefused: the gate refuses version 1")


def test_run_again_it_takes_what_is_done_and_a_second_run_beside_it_does_not_disturb_it(place: Workplace) -> None:
    """Under the first policy it passes again."""
    first = place.start()
    time.sleep(1.0)
    second = place.run()
    out, err = first.communicate(timeout=120)
    assert second.returncode == 2
    assert "another run is at work in results" in second.stderr
    assert first.returncode == 0, err
    report = json.loads(out)
    assert [stage for stage, seconds in report["seconds"].items() if seconds is None] == [*COMPUTED]
    assert err.count("taken from an earlier run") == len(COMPUTED)
    assert (report["results"]["register"]["version"], report["results"]["register"]["created"]) == (1, False)
    assert report["results"]["promote"]["moved"] is False


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
    done = forking.run(command, place.folder, place.environment, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (place.folder / "other").exists()
