"""What would be done about a list: from the list and the ledger alone, and an auditor sees what became of it."""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.errors import SettingsError
from spare_core.store import Store, open_store
from spare_core.takedown.ledger import Event, Ledger, in_chunks
from spare_core.takedown.planning import DEADLINES, Plan, due, overview, plan, read_deadlines, received
from spare_core.takedown.request import TakedownRequest
from tests.takedown.test_lists import request, row

DAYS = {"dmca": 3.0, "gdpr": 30.0, "dsa": 7.0, "court_order": 2.0, "internal": 14.0, "other": 14.0}
NOTICE = {"concept": "", "kind": None, "surrogate": "auto"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


def planned(ledger: Ledger, *rows: dict[str, Any]) -> Plan:
    return plan([request(**one) for one in rows], ledger, DAYS)


def actions(made: Plan) -> dict[str, str]:
    return {step.request.request_id: step.action for step in made.steps}


def taken(ledger: Ledger, *rows: dict[str, Any]) -> Plan:
    """Planned, and put into the ledger."""
    made = planned(ledger, *rows)
    ledger.append(received(made.steps, "list.yaml", ledger))
    return made


def states(ledger: Ledger) -> dict[str, str]:
    return {name: one.state for name, one in ledger.standings.items()}


def test_each_request_of_a_list_has_its_step_and_the_next_due_comes_first(store: Store) -> None:
    made = planned(
        Ledger(store, "anna"),
        {"request_id": "R-1", "regime": "gdpr"},
        {"request_id": "R-2", "concept": "Cat", "regime": "dmca", "surrogate": "auto"},
        {"request_id": "R-3"},
        {"request_id": "R-4", "concept": "Rust", "legal_hold": True},
        {"request_id": "R-5", "concept": "Winter", "due_at": "2026-11-25T00:00:00+02:00"},
        {"request_id": "C-5", "counter_notice_of": "R-5", **NOTICE},
    )
    assert made.conflicts == []
    assert actions(made) == {
        "R-5": "withdraw", "C-5": "withdraw", "R-2": "erase", "R-3": "share", "R-4": "hold", "R-1": "erase",
    }  # fmt: skip
    assert [step.request.request_id for step in made.steps] == ["R-5", "R-2", "R-3", "R-4", "C-5", "R-1"]
    told = {step.request.request_id: step.as_line() for step in made.steps}
    assert told["R-5"].startswith("2026-11-24 22:00Z  withdraw  R-5: 'Winter'; taken back by C-5")
    assert "becomes a surrogate that the planner chooses" in told["R-2"]
    assert "asks for the same as R-1" in told["R-3"]


def test_planning_changes_nothing(store: Store, tmp_path: Path) -> None:
    planned(Ledger(store, "anna"), {})
    assert list((tmp_path / "store").rglob("*")) == []


def test_what_is_taken_in_is_not_taken_in_again(store: Store) -> None:
    ledger = Ledger(store, "anna")
    taken(ledger, {}, {"request_id": "R-2", "concept": "Cat", "legal_hold": True})
    assert states(ledger) == {"R-1": "received", "R-2": "blocked"}
    assert ledger.standing("R-1").facts["request"]["concept"] == "Neon Lines"
    assert ledger.standing("R-1").facts["due_at"] == "2026-11-27T09:00:00+00:00"
    again = taken(ledger, {}, {"request_id": "R-2", "concept": "Cat", "legal_hold": True}, {"request_id": "R-3"})
    assert actions(again) == {"R-1": "nothing", "R-2": "nothing", "R-3": "share"}
    assert ledger.standing("R-3").facts["reason"] == "asks for the same as R-1"
    later = taken(ledger, {"request_id": "R-4"})
    assert [step.reason for step in later.steps] == ["asks for the same as R-1, which is received"]
    assert ledger.number == 3


def test_a_counter_notice_ends_what_it_takes_back(store: Store) -> None:
    """At once where nothing was done; else it waits for the bundle without it."""
    ledger = Ledger(store, "anna")
    taken(ledger, {}, {"request_id": "R-2", "concept": "Cat"})
    worker = {"worker": "w", "lease_until": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    ledger.append([Event("R-2", "planned"), Event("R-2", "erasing", worker), Event("R-2", "evaluated")])
    ledger.append([Event("R-2", "registered", worker)])
    notices = [{"request_id": f"C-{i}", "counter_notice_of": f"R-{i}", **NOTICE} for i in (1, 2)]
    taken(ledger, *notices)
    assert states(ledger) == {"R-1": "withdrawn", "R-2": "withdrawn", "C-1": "done", "C-2": "received"}
    assert ledger.standing("R-2").facts["by"] == "C-2"
    again = taken(ledger, {"request_id": "R-9"})
    assert actions(again) == {"R-9": "erase"}, "what was withdrawn may be asked for anew"


def test_a_legal_hold_may_come_before_any_work_and_be_lifted(store: Store) -> None:
    ledger = Ledger(store, "anna")
    taken(ledger, {})
    assert actions(taken(ledger, {"legal_hold": True})) == {"R-1": "hold"}
    assert states(ledger) == {"R-1": "blocked"}
    assert actions(taken(ledger, {"legal_hold": True})) == {"R-1": "nothing"}
    assert actions(taken(ledger, {})) == {"R-1": "release"}
    assert states(ledger) == {"R-1": "planned"}
    ledger.append([Event("R-1", "erasing", {"worker": "w", "lease_until": "2026-11-24T00:00:00+00:00"})])
    (conflict,) = planned(ledger, {"legal_hold": True}).conflicts
    assert "a legal hold comes too late" in conflict.reason


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"request_id": "R-2", "concept": "Rust", "protect": ["neon lines"]}], "it protects 'neon lines', which R-1"),
        (
            [{"request_id": "R-2", "concept": "Rust", "protect": ["a neon line"]}],
            "it protects 'a neon line', which R-1",
        ),
        ([{"request_id": "R-2", "concept": "Winter", "surrogate": "Rust"}], "'Winter' is protected by R-1"),
        ([{"request_id": "R-2", "concept": "Winters", "surrogate": "Rust"}], "'Winters' is protected by R-1"),
        ([{"request_id": "R-2", "concept": "Photo", "surrogate": "Neon Lines"}], "the surrogates go round in a circle"),
        ([{"surrogate": "Rust"}], "the ledger has another request of that id, entry 1"),
        (
            [{"request_id": "C-1", "counter_notice_of": "R-7", **NOTICE}],
            "takes back 'R-7', which neither list nor ledger",
        ),
    ],
)
def test_what_the_ledger_knows_otherwise_is_a_conflict(store: Store, rows: list[dict[str, Any]], said: str) -> None:
    ledger = Ledger(store, "anna")
    taken(ledger, {"protect": ["Winter"]})
    (conflict,) = planned(ledger, *rows).conflicts
    assert said in str(conflict)


def test_deadlines_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    assert set(read_deadlines()) == set(DAYS)
    assert due(request(regime="dmca"), DAYS) == datetime(2026, 11, 27, 9, tzinfo=UTC)
    (tmp_path / "own.yaml").write_text("dmca: 0\ngdpr: x\ndsa: true\nfriday: 1\ncourt_order: 1.5\ninternal: 2\n")
    with pytest.raises(SettingsError) as caught:
        read_deadlines(tmp_path / "own.yaml")
    told = "\n".join(caught.value.problems)
    for part in ("dmca is 0", "gdpr is 'x'", "dsa is True", "unknown regime 'friday'", "other is None"):
        assert part in told
    assert "court_order" not in told.replace("known: dmca, gdpr, dsa, court_order", "")
    assert DEADLINES.is_file()


def test_what_is_late_and_what_is_about_to_be(store: Store) -> None:
    ledger = Ledger(store, "anna")
    taken(
        ledger, {}, {"request_id": "R-2", "concept": "Cat", "regime": "gdpr"}, {"request_id": "R-3", "concept": "Rust"}
    )
    ledger.append([Event("R-3", "withdrawn")])
    rows = {one["request_id"]: one for one in overview(ledger, datetime(2026, 11, 28, tzinfo=UTC), timedelta(days=40))}
    assert [(one["late"], one["soon"]) for one in rows.values()] == [(True, False), (False, False), (False, True)]
    assert list(rows) == ["R-1", "R-3", "R-2"]


def test_thousands_of_rows_are_planned_with_little_memory(store: Store) -> None:
    """Time is for benchmarks."""
    rows = [TakedownRequest.model_validate(row(request_id=f"R-{i}", concept=f"Concept {i}")) for i in range(3_000)]
    ledger = Ledger(store, "anna")
    tracemalloc.start()
    made = plan(rows, ledger, DAYS)
    for chunk in in_chunks(received(made.steps, "list.yaml", ledger)):
        ledger.append(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made.steps) == len(ledger.standings) == 3_000
    assert ledger.number == 6
    assert peak < 100 * 2**20


# --- the commands ----------------------------------------------------------------------------------------------------


def spare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["takedown", *map(str, arguments)])


def test_plan_prints_what_would_be_done_and_writes_nothing(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps(row()))
    done = spare("plan", path, "--store", store.uri)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "2026-11-27 09:00Z  erase     R-1: 'Neon Lines'; becomes 'Photo'\n"
    assert list((tmp_path / "store").rglob("*")) == []
    steps = json.loads(spare("plan", path, "--store", store.uri, "--json").stdout)["steps"]
    assert steps[0]["due_at"] == "2026-11-27T09:00:00+00:00"
    path.write_text(json.dumps(row(kind="x")))
    refused = spare("plan", path, "--store", store.uri)
    assert (refused.exit_code, refused.stdout) == (2, "") and "kind: 'x'" in refused.stderr


def test_status_says_what_is_late_and_its_exit_code_too(tmp_path: Path, store: Store) -> None:
    ledger = Ledger(store, "anna")
    assert spare("status", "--store", store.uri).exit_code == 0
    far = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    taken(ledger, {"due_at": far})
    good = spare("status", "--store", store.uri, "--head", f"1:{ledger.sha256}", "--deep")
    assert good.exit_code == 0, good.stderr
    assert "soon  received    R-1: 'Neon Lines'" in good.stdout
    assert f"1 received; 0 late; chain of 1 entries in order, head 1:{ledger.sha256}" in good.stdout
    taken(ledger, {"request_id": "R-2", "concept": "Cat"})
    late = spare("status", "--store", store.uri, "--json")
    assert late.exit_code == (1 if datetime.now(UTC) > datetime(2026, 11, 27, 9, tzinfo=UTC) else 0)
    report = json.loads(late.stdout)
    assert (report["entries"], report["counts"]) == (2, {"received": 2})
    ledger.append([Event("R-1", "failed", {"reason": "no"})])
    assert spare("status", "--store", store.uri).exit_code == 1


def test_a_store_may_be_named_from_where_one_stands(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(Ledger(store, "anna"), {})
    monkeypatch.chdir(tmp_path)
    assert "R-1: 'Neon Lines'" in spare("status", "--store", "store").stdout
    refused = spare("status", "--store", "nowhere")
    assert refused.exit_code == 2
    assert "there is no folder" in refused.stderr


def test_status_refuses_what_is_no_head_and_names_what_is_broken(tmp_path: Path, store: Store) -> None:
    ledger = Ledger(store, "anna")
    taken(ledger, {})
    assert "it must be NUMBER:SHA256" in spare("status", "--store", store.uri, "--head", "x").stderr
    cut = spare("status", "--store", store.uri, "--head", f"2:{'a' * 64}")
    assert cut.exit_code == 1 and "entry 2 of the ledger was aaaaaaaaaaaa… and is gone now" in cut.stderr
    (entry,) = (tmp_path / "store" / "ledger" / "entries").rglob("*.json")
    entry.write_text("rubbish")
    broken = spare("status", "--store", store.uri)
    assert broken.exit_code == 1 and "entry 1 of the ledger" in broken.stderr and broken.stdout == ""
