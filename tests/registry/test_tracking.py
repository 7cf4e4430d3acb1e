"""Runs: one parent a request, one child a stage, whatever is killed, tried again or raced; and no secret in them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow.data
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from serving.services import free_port
from spare_core.errors import RegistryInputError, RegistryUnavailable
from spare_core.registry.tracking import EXPERIMENT, PARENT, REQUEST, end_request, metric_key, sha256_of, stage_run

pytest_plugins = ("tests.support.mlflow_fixtures",)
pytestmark = pytest.mark.usefixtures("server")


def runs_of(client: MlflowClient, request_id: str) -> tuple[list[Any], list[Any]]:
    """Parents and children of a request, those that are not deleted."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = [run for run in client.search_runs([experiment.experiment_id], "", ViewType.ACTIVE_ONLY, 5000)
            if run.data.tags.get(REQUEST) == request_id]  # fmt: skip
    return [run for run in runs if PARENT not in run.data.tags], [run for run in runs if PARENT in run.data.tags]


def test_a_stage_logs_under_its_request(client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"a plot")
    with stage_run("r-log", "distill", "kfp-1") as run:
        run.params({"rank": 8, "concept": "Neon 'Lines' 🎨"})
        for step in range(2500):
            run.metrics({"loss/forget": 1 / (step + 1)}, step)
        run.metrics({"drift/日本画 🎨": 0.5, "drift/../../x": 0.25})
        run.artifact(tmp_path / "plot.png", "plots")
        assert client.get_run(run.run_id).info.status == "RUNNING"
    parents, [child] = runs_of(client, "r-log")
    assert [parent.info.status for parent in parents] == ["RUNNING"]
    assert child.info.status == "FINISHED"
    assert child.data.tags[PARENT] == parents[0].info.run_id
    assert (child.data.tags["spare.stage"], child.data.tags["spare.kfp_run_id"]) == ("distill", "kfp-1")
    assert child.data.params == {"rank": "8", "concept": "Neon 'Lines' 🎨"}
    assert child.data.metrics[metric_key("drift/日本画 🎨")] == 0.5
    assert child.data.metrics[metric_key("drift/../../x")] == 0.25
    assert len(client.get_metric_history(child.info.run_id, "loss/forget")) == 2500
    assert [file.path for file in client.list_artifacts(child.info.run_id, "plots")] == ["plots/plot.png"]


def test_a_stage_that_raises_is_failed_and_says_why(client: MlflowClient) -> None:
    with pytest.raises(ValueError, match="lr is too high"), stage_run("r-fail", "distill", "kfp-1") as run:
        run.metrics({"loss": 1.0}, 7)
        raise ValueError("lr is too high")
    _, [child] = runs_of(client, "r-fail")
    assert child.info.status == "FAILED"
    assert child.data.tags["spare.error"] == "ValueError: lr is too high"
    assert child.data.metrics == {"loss": 1.0}


def test_a_stage_tried_again_goes_on_in_its_own_run(client: MlflowClient) -> None:
    with pytest.raises(ValueError), stage_run("r-again", "distill", "kfp-1") as run:
        run.params({"rank": 8, "device": "cuda"})
        raise ValueError
    with stage_run("r-again", "distill", "kfp-1") as again:
        again.params({"rank": 8, "device": "cpu"})
    assert (run.run_id, again.attempt) == (again.run_id, 2)
    parents, [child] = runs_of(client, "r-again")
    assert len(parents) == 1
    assert child.info.status == "FINISHED"
    assert "spare.error" not in child.data.tags
    assert child.data.params == {"rank": "8", "device": "cuda", "device.attempt2": "cpu"}


def test_another_kfp_run_of_the_request_has_children_of_its_own_under_the_same_parent(client: MlflowClient) -> None:
    for kfp_run in ("kfp-1", "kfp-2"):
        with stage_run("r-two", "distill", kfp_run):
            pass
    parents, children = runs_of(client, "r-two")
    assert len(parents) == 1
    assert {child.data.tags[PARENT] for child in children} == {parents[0].info.run_id}
    assert len(children) == 2


def test_the_end_of_a_request_closes_what_was_killed(client: MlflowClient) -> None:
    with stage_run("r-end", "prepare", "kfp-1"):
        pass
    killed = stage_run("r-end", "distill", "kfp-1")
    killed.__enter__()  # and never left, as after a SIGKILL
    parent = end_request("r-end", "FAILED", {"spare.outcome": "distill was killed"})
    parents, children = runs_of(client, "r-end")
    assert [(run.info.run_id, run.info.status) for run in parents] == [(parent, "FAILED")]
    assert parents[0].data.tags["spare.outcome"] == "distill was killed"
    assert {run.data.tags["spare.stage"]: run.info.status for run in children} == {
        "prepare": "FINISHED", "distill": "KILLED",
    }  # fmt: skip
    with stage_run("r-end", "distill", "kfp-1"):  # the re-run opens the request again
        assert client.get_run(parent).info.status == "RUNNING"
    end_request("r-end", "FINISHED")
    assert client.get_run(parent).info.status == "FINISHED"


def test_the_end_of_a_request_that_never_logged_is_recorded_too(client: MlflowClient) -> None:
    parent = end_request("r-never", "FAILED", {"spare.outcome": "bad input"})
    assert client.get_run(parent).data.tags["spare.outcome"] == "bad input"


def test_stages_that_start_at_once_share_one_parent(client: MlflowClient) -> None:
    start = threading.Barrier(4)

    def work(stage: str) -> None:
        start.wait()
        with stage_run("r-race", stage, "kfp-1") as run:
            run.params({"stage": stage})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, ("saliency", "timesteps", "prepare", "plan")))
    parent = end_request("r-race", "FINISHED")
    parents, children = runs_of(client, "r-race")
    assert [run.info.run_id for run in parents] == [parent]
    assert {child.data.tags[PARENT] for child in children} == {parent}
    assert sorted(child.data.params["stage"] for child in children) == ["plan", "prepare", "saliency", "timesteps"]


def test_parents_that_a_race_left_behind_become_one(client: MlflowClient) -> None:
    """The double is older by its clock, so the one that has a child already must give it away."""
    with stage_run("r-double", "prepare", "kfp-1") as run:
        pass
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {REQUEST: "r-double", "spare.request_key": sha256_of("r-double")}
    older = client.create_run(experiment, start_time=int(time.time() * 1000) - 60_000, tags=tags)
    end_request("r-double", "FINISHED")
    parents, children = runs_of(client, "r-double")
    assert [parent.info.run_id for parent in parents] == [older.info.run_id]
    assert [(child.info.run_id, child.data.tags[PARENT]) for child in children] == [(run.run_id, older.info.run_id)]


@pytest.mark.parametrize("request_id", ["' or tags.x != '", "`'\"; drop table runs; --", "日本/../🎨", "%' --"])
def test_a_request_id_is_data(client: MlflowClient, request_id: str) -> None:
    with stage_run(request_id, "prepare", "kfp' or '1'='1"):
        pass
    parents, children = runs_of(client, request_id)
    assert (len(parents), len(children)) == (1, 1)
    end_request(request_id, "FINISHED")
    assert client.get_run(parents[0].info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("request_id", "stage", "kfp"), [
    ("", "prepare", "k"), ("x" * 251, "prepare", "k"), ("r", "Pre pare", "k"), ("r", "prepare", " "),
])  # fmt: skip
def test_ids_that_cannot_be_are_refused(request_id: str, stage: str, kfp: str) -> None:
    with pytest.raises(RegistryInputError), stage_run(request_id, stage, kfp):
        pass


def test_what_is_too_long_is_cut_and_says_so(client: MlflowClient) -> None:
    with pytest.raises(ValueError), stage_run("r-long", "prepare", "kfp-1") as run:
        run.params({"long": "x" * 7000, "k" * 300: "y"})
        raise ValueError("z" * 9000)
    data = client.get_run(run.run_id).data
    assert (len(data.params["long"]), data.params["long"][-1]) == (6000, "…")
    assert (len(data.tags["spare.error"]), data.tags["spare.error"][-1]) == (8000, "…")
    assert data.params[metric_key("k" * 300)] == "y"


def test_a_secret_of_the_environment_reaches_no_run(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr3t-planted-91c2"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(ValueError), stage_run("r-secret", "prepare", "kfp-1") as run:
        run.params({"url": f"http://user:{secret}@host/x"})
        raise ValueError(f"no access with {secret} at https://me:other@host")
    end_request("r-secret", "FAILED", {"spare.outcome": f"failed with {secret}"})
    parents, children = runs_of(client, "r-secret")
    everything = str([run.to_dictionary() for run in (*parents, *children)])
    assert secret not in everything
    assert "other@" not in everything
    assert run.run_id in everything


def test_a_server_that_goes_away_in_the_middle_is_a_clear_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryUnavailable, match="cannot be reached"), stage_run("r-gone", "distill", "kfp-1") as run:
        run.client = MlflowClient(f"http://127.0.0.1:{free_port()}")
        run.metrics({"loss": 1.0})
        run.flush()


def test_an_error_of_the_work_is_not_hidden_by_a_server_that_is_gone_too() -> None:
    with pytest.raises(ValueError, match="the real reason") as caught, stage_run("r-both", "distill", "kfp-1") as run:
        run.client = MlflowClient(f"http://127.0.0.1:{free_port()}")
        raise ValueError("the real reason")
    assert "MLflow could not be told" in caught.value.__notes__[0]


def test_what_a_stage_reads_is_one_of_mlflows_inputs(client: MlflowClient) -> None:
    digest = "ab" * 32
    with stage_run("inputs", "prepare", "kfp-1") as run:
        run.dataset("pictures", digest, "s3://bucket/pictures", "training", {"images": 12})
        run.dataset("examples", digest, "drawn by canvas", "training", {"forget": 48})
    inputs = client.get_run(run.run_id).inputs.dataset_inputs
    found = {one.dataset.name: one for one in inputs}
    assert {*found} == {"pictures", "examples"}
    assert found["pictures"].dataset.digest == digest[:36]
    assert {tag.key: tag.value for tag in found["pictures"].tags} == {"mlflow.data.context": "training"}
    assert json.loads(found["examples"].dataset.profile) == {"forget": 48}
    source = mlflow.data.get_source(found["pictures"].dataset)
    assert source.to_dict() == {"uri": "s3://bucket/pictures"}
    assert mlflow.data.get_source(found["examples"].dataset).to_dict() == {
        "tags": {"mlflow.source.name": "drawn by canvas"}
    }


@pytest.mark.parametrize(("wanted", "logged"), [("true", True), ("false", False), (None, False)])
def test_system_metrics_are_logged_where_mlflows_variable_asks_for_them(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, wanted: str | None, logged: bool
) -> None:
    """Or, without it, on a node with a GPU; this is none."""
    monkeypatch.setattr("spare_core.registry.tracking._GPU", Path("/nonexistent"))
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    if wanted is not None:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", wanted)
    with stage_run(f"system {wanted}", "distill", "kfp-1") as run:
        time.sleep(1.0)
    names = {name for name in client.get_run(run.run_id).data.metrics if name.startswith("system/")}
    assert ("system/cpu_utilization_percentage" in names) is logged
    assert bool(names) is logged
