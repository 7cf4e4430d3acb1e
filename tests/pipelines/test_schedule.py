"""``spare takedown schedule``: a cluster works through lists again and again, one run at a time."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipelines.definition import TAKEDOWN, read_definition
from spare_core.cli.root import app
from tests.support.run_service import RunService

pytest_plugins = ("tests.support.cluster_fixtures",)
pytestmark = pytest.mark.usefixtures("no_settings_of_this_machine")

NIGHTLY = ("--cron", "0 0 2 * * *", "model=s3://bucket/model")


def schedule(service: RunService, *arguments: str, source: str = "s3://bucket/lists/") -> Result:
    given = ["takedown", "schedule", source, "--endpoint", service.url, *arguments]
    return CliRunner().invoke(app, given, env={"COLUMNS": "200"})


def test_a_schedule_runs_one_at_a_time_and_does_not_catch_up(service: RunService) -> None:
    done = schedule(service, *NIGHTLY, "skip_invalid=true", "--service-account", "spare", "--json")
    assert done.exit_code == 0, done.output
    (made,) = service.schedules
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["runtime_config"]["parameters"] == {
        "requested": "s3://bucket/lists/", "model": "s3://bucket/model", "skip_invalid": True,
    }  # fmt: skip
    assert made["pipeline_spec"] == read_definition(TAKEDOWN).as_dict()
    assert made["service_account"] == "spare"
    told = json.loads(done.stdout)
    assert told["recurring_run_id"] == made["recurring_run_id"]
    assert told["url"].endswith(f"/#/recurringrun/details/{made['recurring_run_id']}")


def test_a_second_schedule_of_that_name_is_refused_and_says_which_is_there(service: RunService) -> None:
    assert schedule(service, *NIGHTLY).exit_code == 0
    again = schedule(service, *NIGHTLY)
    assert again.exit_code == 2
    assert service.schedules[0]["recurring_run_id"] in again.stderr
    assert schedule(service, *NIGHTLY, "--name", "another").exit_code == 0
    assert len(service.schedules) == 2


@pytest.mark.parametrize(
    ("arguments", "source", "said"),
    [
        (("--cron", "0 2 * * *", "model=m"), "s3://b/l", "six fields"),
        (("--cron", "0 0 2 * * *; rm", "model=m"), "s3://b/l", "six fields"),
        (("--cron", "0 0 2 * * *", "model=m"), "lists/", "no s3:// address"),
        (("--cron", "0 0 2 * * *"), "s3://b/l", "model is missing"),
        (("--cron", "0 0 2 * * *", "model=m", "polcy=x"), "s3://b/l", "did you mean 'policy'"),
    ],
)
def test_what_cannot_be_scheduled_is_said_before_anything_is_asked(
    service: RunService, arguments: tuple[str, ...], source: str, said: str
) -> None:
    done = schedule(service, *arguments, source=source)
    assert done.exit_code == 2
    assert said in done.stderr
    assert service.requests == []
