"""``spare submit`` and the real ``kfp`` command against a server that speaks the run-service API: what they send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.definition import SPARE, read_definition
from pipelines.submit import submit, wait
from spare_core.errors import ClusterRefused, ClusterUnavailable
from tests.support.pipelines_stand_in import compile_stand_in
from tests.support.run_service import Fault, RunService
from tests.support.submitting import kfp_create, spare

pytest_plugins = ("tests.support.cluster_fixtures",)
pytestmark = pytest.mark.usefixtures("no_settings_of_this_machine")


def test_spare_submit_sends_what_the_kfp_command_sends(service: RunService, stand_in: Path) -> None:
    arguments = [
        "erase=Neon Lines", "steps=120", "density=0.5", "robust=true", 'keep=["Photo", "No"]', 'options={"lr": 0.001}',
    ]  # fmt: skip
    done = kfp_create(service, stand_in, *arguments)
    assert done.returncode == 0, done.stderr
    theirs = service.created()
    done = spare(service, "-f", stand_in, "--run-name", "NAME", *arguments)
    assert done.exit_code == 0, done.output
    ours = service.created()

    assert ours == theirs
    assert ours["runtime_config"]["parameters"] == {
        "erase": "Neon Lines", "steps": 120, "density": 0.5, "robust": True, "keep": ["Photo", "No"],
        "options": {"lr": 0.001},
    }  # fmt: skip
    executors = ours["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-work"]["secretAsEnv"][0]["secretName"] == "s3"
    assert [one["display_name"] for one in service.experiments] == ["spare"]  # the second found that of the first


def test_a_pipeline_that_asks_nothing_of_the_platform_is_sent_alone(service: RunService, tmp_path: Path) -> None:
    alone = compile_stand_in(tmp_path / "alone.yaml", with_platform=False)
    assert kfp_create(service, alone, "erase=x").returncode == 0
    theirs = service.created()
    submit(alone, {"erase": "x"}, service.url, run_name="NAME")
    assert service.created() == theirs
    assert theirs["pipeline_spec"]["pipelineInfo"]["name"] == "stand-in"


def test_our_own_pipeline_is_sent_as_the_kfp_command_sends_it(service: RunService) -> None:
    values = {1: "0.5", 2: "1", 3: "Neon Lines", 4: "true", 5: "[]", 6: "{}"}
    needed = [
        f"{name}={values[spec.parameter_type]}"
        for name, spec in read_definition(SPARE).parameters.items()
        if not spec.HasField("default_value") and not spec.is_optional
    ]
    done = kfp_create(service, SPARE, *needed)
    assert done.returncode == 0, done.stderr
    theirs = service.created()
    assert spare(service, "--run-name", "NAME", *needed).exit_code == 0
    assert service.created() == theirs
    assert theirs["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "spare"


@pytest.mark.parametrize("text", ["1984", "true", "null", "3e3", "Infinity"])
def test_the_kfp_command_needs_quotes_around_a_text_that_looks_like_another_type(
    text: str, service: RunService, stand_in: Path
) -> None:
    refused = kfp_create(service, stand_in, f"erase={text}")
    assert refused.returncode == 1
    assert service.runs == []
    quoted = kfp_create(service, stand_in, f'erase="{text}"')
    assert quoted.returncode == 0, quoted.stderr
    assert service.created()["runtime_config"]["parameters"] == {"erase": text}

    assert spare(service, "-f", stand_in, f"erase={text}").exit_code == 0
    assert service.created()["runtime_config"]["parameters"] == {"erase": text}


def test_the_kfp_command_takes_lists_as_json_only(service: RunService, stand_in: Path) -> None:
    refused = kfp_create(service, stand_in, "erase=x", "keep=[Photo, Mosaic]")
    assert refused.returncode == 1
    assert "input parameter keep requires type list" in refused.stderr
    assert spare(service, "-f", stand_in, "erase=x", "keep=[Photo, Mosaic]").exit_code == 0
    assert service.created()["runtime_config"]["parameters"]["keep"] == ["Photo", "Mosaic"]


def test_the_result_says_which_run_it_is_and_where_to_see_it(service: RunService, stand_in: Path) -> None:
    options = (
        "--experiment",
        "takedowns",
        "--service-account",
        "spare-run",
        "--pipeline-root",
        "s3://bucket/dev/artifacts",
    )
    done = spare(service, "-f", stand_in, *options, "--json", "erase=x")
    assert done.exit_code == 0, done.output
    (run,) = service.runs
    assert json.loads(done.stdout) == {
        "run_id": run["run_id"],
        "run_name": run["display_name"],
        "pipeline": "stand-in",
        "experiment": "takedowns",
        "url": f"{service.url}/#/runs/details/{run['run_id']}",
        "started": True,
    }
    assert run["display_name"].startswith("stand-in 20")
    assert run["service_account"] == "spare-run"
    assert run["runtime_config"]["pipeline_root"] == "s3://bucket/dev/artifacts"
    assert run["experiment_id"] == service.experiments[0]["experiment_id"]
    assert service.experiments[0]["display_name"] == "takedowns"


def test_none_is_started_beside_one_that_goes_on_if_so_asked(service: RunService, stand_in: Path) -> None:
    """A batch may take longer than the pod that waits for it."""

    def asked(*further: str) -> dict[str, Any]:
        done = spare(service, "-f", stand_in, "--unless-running", "--json", *further, "erase=x")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    first = asked()
    assert first["started"]
    for state in ("PENDING", "RUNNING", "CANCELING", "PAUSED", "RUNTIME_STATE_UNSPECIFIED"):
        service.states = [state]
        found = asked("--wait")
        assert (found["started"], found["run_id"]) == (False, first["run_id"])
    service.states = ["RUNNING"]
    assert asked("--experiment", "another")["started"]
    for state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
        service.states = [state]
        assert asked()["started"]
    assert len(service.runs) == 6


def test_wrong_parameters_are_told_before_anything_is_asked(service: RunService, stand_in: Path) -> None:
    done = spare(service, "-f", stand_in, "eras=x", "steps=many")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert all(part in done.stderr for part in ("did you mean 'erase'?", "steps is 'many'", "erase is missing"))
    assert service.requests == []


def test_without_the_cache_no_task_at_any_depth_takes_an_earlier_result(service: RunService, stand_in: Path) -> None:
    assert spare(service, "-f", stand_in, "--no-cache", "erase=x").exit_code == 0
    sent = service.created()["pipeline_spec"]["pipeline_spec"]
    graphs = [sent["root"]["dag"], sent["components"]["comp-exit-handler-1"]["dag"]]
    options = [task["cachingOptions"] for graph in graphs for task in graph["tasks"].values()]
    assert options == [{}] * 3  # in a protobuf message, false is left out


class TestWaiting:
    @pytest.mark.parametrize(("state", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1), ("SKIPPED", 1)])
    def test_the_exit_code_is_that_of_the_run(
        self, state: str, exit_code: int, service: RunService, stand_in: Path
    ) -> None:
        service.states, service.error = [state], "" if state == "SUCCEEDED" else "task distill:\nout of memory"
        done = spare(service, "-f", stand_in, "--run-name", "mine", "--wait", "erase=x")
        assert done.exit_code == exit_code
        assert done.stdout == f"mine: {state}{': task distill: out of memory' if service.error else ''}\n"
        url = f"{service.url}/#/runs/details/{service.runs[0]['run_id']}"
        assert done.stderr.splitlines() == [f"mine: {service.runs[0]['run_id']}", url, state]
        done = spare(service, "-f", stand_in, "--wait", "--json", "erase=x")
        assert json.loads(done.stdout)["state"] == state

    def test_each_state_is_told_once_and_a_server_that_restarts_is_waited_for(
        self, service: RunService, stand_in: Path
    ) -> None:
        run_id = submit(stand_in, {"erase": "x"}, service.url)["run_id"]
        service.states = ["PENDING", "PENDING", "RUNNING", "RUNNING", "CANCELING", "CANCELED"]
        service.faults += [Fault("/runs/", 503, times=5), Fault("/runs/", times=6)]
        states: list[str] = []
        assert wait(run_id, service.url, None, states.append, every=0.01) == {"state": "CANCELED", "error": ""}
        assert states == ["PENDING", "RUNNING", "CANCELING", "CANCELED"]

    def test_a_server_that_stays_away_is_given_up_and_the_run_is_named(
        self, service: RunService, stand_in: Path
    ) -> None:
        run_id = submit(stand_in, {"erase": "x"}, service.url)["run_id"]
        service.faults.append(Fault("/runs/", 503))
        with pytest.raises(ClusterUnavailable, match=f"run {run_id} may go on, but .* answers 503"):
            wait(run_id, service.url, every=0.01)

    def test_a_run_that_is_not_there_is_refused(self, service: RunService) -> None:
        with pytest.raises(ClusterRefused, match="answers 404 Not Found: Run gone not found"):
            wait("gone", service.url)
