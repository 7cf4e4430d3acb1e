"""What a task tells can be read by whoever runs it, and its exit code is that of its error."""

from __future__ import annotations

import json

import pytest

from spare_core.errors import GateRefused, SettingsError
from spare_core.workflow.events import read_event, reported


def events(text: str) -> list[dict[str, object]]:
    """The events among lines of output."""
    return [event for line in text.splitlines() if (event := read_event(line))]


def test_start_and_results_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with reported("register") as results:
        print("something for people")
        results["name"] = "spare.canvas.café 🎨"
    assert events(capsys.readouterr().out) == [
        {"stage": "register", "event": "start"},
        {"stage": "register", "event": "done", "name": "spare.canvas.café 🎨"},
    ]


@pytest.mark.parametrize(
    ("error", "code"), [(SettingsError(["rank is 0", "seed is -1"]), 2), (GateRefused("too low", ["ua"]), 3)]
)
def test_an_error_of_ours_ends_the_process_with_its_code_and_words(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, reported("gate"):
        raise error
    assert ended.value.code == code
    said = capsys.readouterr()
    assert events(said.out)[-1] == {"stage": "gate", "event": "error", "message": str(error), "exit_code": code}
    assert said.err.splitlines()[-1] == f"error: {error}"


def test_any_other_error_shows_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), reported("prepare"):
        _ = 1 / 0
    assert events(capsys.readouterr().out)[-1]["message"] == "ZeroDivisionError: division by zero"


def test_an_interrupted_task_tells_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), reported("prepare"):
        raise KeyboardInterrupt
    assert [event["event"] for event in events(capsys.readouterr().out)] == ["start"]


@pytest.mark.parametrize(
    "line", ["", "spare: ", "spare: no json", "spare: [1]", "spare: {}", 'spare: {"stage": "x"}', "[1.0 s] spare"]
)
def test_other_lines_are_no_events(line: str) -> None:
    assert read_event(line) is None


def test_an_indented_line_is_one() -> None:
    event = {"stage": "distill", "event": "start"}
    assert read_event(f"    spare: {json.dumps(event)}\n") == event
