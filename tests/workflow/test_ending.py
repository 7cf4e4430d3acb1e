"""How a pipeline run ended is what its stages recorded: KFP's own words differ between its runner and its backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from spare_core.registry.client import check_server, connect, embedded_uri
from spare_core.registry.tracking import EXPERIMENT, PARENT, REQUEST, stage_run
from spare_core.workflow.ending import end_runs, outcome
from spare_core.workflow.environment import RUN_ID

STAGES = ("validate", "prepare", "distill", "evaluate", "register", "gate")
KILLED = "it was killed, or its machine was lost"

# ml_metadata's Execution.State, in its proto file: what KFP's backend hands to an exit handler. KFP's own test of one
# (pipeline_with_input_status_state.py) asserts COMPLETE.
METADATA = ("UNKNOWN", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELED")
# KFP's RuntimeState, and what the local runner says.
RUNTIME = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "SUCCEEDED", "SKIPPED", "FAILED", "CANCELING", "CANCELED",
           "PAUSED")  # fmt: skip
WORDS = sorted({*METADATA, *RUNTIME, ""})
BAD = {"FAILED": "FAILED", "CANCELED": "KILLED", "CANCELING": "KILLED"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow") / "registry"


@pytest.fixture(autouse=True)
def used(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """MLflow in a folder; each test is a task of a pipeline run of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", embedded_uri(folder))
    check_server()
    run_id = str(abs(hash(request.node.nodeid)))
    monkeypatch.setenv(RUN_ID, run_id)
    return run_id


def staged(request_id: str, run_id: str, failing: str = "", left: str = "") -> None:
    """The stages of a request, of which one may fail, and one never come to its end."""
    for stage in STAGES:
        if stage == left:
            with stage_run(request_id, stage, run_id) as run:
                pass
            connect().update_run(run.run_id, status="RUNNING")  # as a killed one is left
            return
        if stage == failing:
            with pytest.raises(ValueError, match="bad luck"), stage_run(request_id, stage, run_id):
                raise ValueError("bad luck")
            return
        with stage_run(request_id, stage, run_id):
            pass


def parent(request_id: str) -> Run:
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], f"tags.`{REQUEST}` = '{request_id}'")
    (above,) = (run for run in found if PARENT not in run.data.tags)
    return above


WELL: dict[str, str] = dict.fromkeys(STAGES, "")


@pytest.mark.parametrize("word", WORDS)
def test_a_run_that_went_well_is_finished_whatever_kfp_calls_it(word: str) -> None:
    assert outcome(word, WELL, alone=True) == BAD.get(word, "FINISHED")
    assert outcome(word, WELL, alone=False) == "FINISHED", "what failed was another request's"


@pytest.mark.parametrize("word", sorted({*WORDS} - {"SUCCEEDED", "COMPLETE", "CACHED"}))
@pytest.mark.parametrize("alone", [True, False])
def test_a_run_in_which_a_stage_failed_is_not(word: str, alone: bool) -> None:
    assert outcome(word, {**WELL, "distill": "ValueError: bad luck"}, alone) == BAD.get(word, "FAILED")


@pytest.mark.parametrize("word", ["RUNNING", "UNKNOWN", "FAILED", "", "PENDING"])
def test_a_run_whose_next_task_never_came_to_record_anything_failed(word: str) -> None:
    """Its image could not be pulled, say: every stage that there is went well."""
    assert outcome(word, {"validate": "", "prepare": ""}, alone=True) == "FAILED"


def test_what_kfps_backend_says_of_a_good_run_finishes_it(used: str) -> None:
    staged("well", used)
    assert end_runs("COMPLETE", "") == {"well": {}}
    assert parent("well").info.status == "FINISHED"


@pytest.mark.parametrize("how", [{"failing": "distill"}, {"left": "evaluate"}])
def test_what_went_wrong_is_told_where_kfp_says_nothing(how: dict[str, Any], used: str) -> None:
    name = f"ill {next(iter(how))}"
    staged(name, used, **how)
    ((stage, error),) = end_runs("FAILED", "")[name].items()
    assert error in ("ValueError: bad luck", KILLED)
    above = parent(name)
    assert above.info.status == "FAILED"
    assert above.data.tags["spare.outcome.message"] == f"{stage}: {error}"
    assert above.data.tags[f"spare.error.{stage}"] == error


def test_kfps_message_comes_first_where_there_is_one(used: str) -> None:
    staged("told", used, failing="prepare")
    end_runs("FAILED", "task prepare: exit code 1")
    assert parent("told").data.tags["spare.outcome.message"] == "task prepare: exit code 1"


def test_the_stages_of_a_request_end_with_it(used: str) -> None:
    staged("ended", used, left="evaluate")
    end_runs("FAILED", "")
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], f"tags.`{REQUEST}` = 'ended'")
    states = {run.data.tags.get("spare.stage", "request"): run.info.status for run in runs}
    assert states == {
        "request": "FAILED", "validate": "FINISHED", "prepare": "FINISHED", "distill": "FINISHED", "evaluate": "KILLED",
    }  # fmt: skip


def test_of_several_requests_of_a_run_only_those_fail_in_which_something_did(used: str) -> None:
    with stage_run("good", "erase", used):
        pass
    with pytest.raises(ValueError, match="bad luck"), stage_run("bad", "erase", used):
        raise ValueError("bad luck")
    assert end_runs("FAILED", "") == {"good": {}, "bad": {"erase": "ValueError: bad luck"}}
    assert (parent("good").info.status, parent("bad").info.status) == ("FINISHED", "FAILED")


def test_a_run_that_never_reached_mlflow_has_no_end(used: str) -> None:
    assert end_runs("FAILED", "") == {}
