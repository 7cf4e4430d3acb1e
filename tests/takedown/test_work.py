"""What a run does about the requests of the ledger: each once, whatever happens, and what ends one stops no other."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spare_core.errors import InputError, StoreUnavailable
from spare_core.store import Store, open_store
from spare_core.takedown import work
from spare_core.takedown.bundling import Deployed, claim, settle, wanted
from spare_core.takedown.leases import lease, renewed
from spare_core.takedown.ledger import Event, Ledger
from spare_core.takedown.request import TakedownRequest
from tests.support import forking
from tests.support import takedown_stub as stub
from tests.takedown.test_lists import request

NOTICE = {"concept": "", "kind": None, "surrogate": "auto"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


def asked(*concepts: str, **changes: Any) -> list[TakedownRequest]:
    """A request for each concept, R-1, R-2, …"""
    return [
        request(request_id=f"R-{i}", concept=concept, surrogate="Photo", **changes)
        for i, concept in enumerate(concepts, 1)
    ]


def states(store: Store) -> dict[str, str]:
    return {name: one.state for name, one in Ledger(store, "reader").standings.items()}


def history(store: Store, request_id: str) -> list[str]:
    """Every state that a request entered."""
    entries = [json.loads(store.read(key)) for key in store.list("ledger/entries")]
    return [event["state"] for entry in entries for event in entry["events"] if event["request_id"] == request_id]


def erased(store: Store) -> set[str]:
    """What the champion erases."""
    return {row["concept"] for row in stub.Champion(store).read()[1]}


def test_a_list_is_worked_through_and_the_same_again_does_nothing(store: Store) -> None:
    requests = asked("Cat", "fails 2", "Tower")
    assert stub.run(store, "run-1", requests) == ["R-1", "R-2", "R-3"]
    assert states(store) == {"R-1": "done", "R-2": "failed", "R-3": "done"}
    assert erased(store) == {"Cat", "Tower"}
    way = ["received", "planned", "erasing", "erasing", "evaluated", "registered", "in_bundle", "done"]
    assert history(store, "R-1") == way
    reason = Ledger(store, "reader").standing("R-2").facts["reason"]
    assert reason == "the model does not know it"
    before = Ledger(store, "reader").number
    assert stub.run(store, "run-2", requests) == [], "what failed for its own reason is not tried for ever"
    assert Ledger(store, "reader").number == before
    assert stub.Champion(store).read()[0] == 1


def test_a_failure_of_the_machine_is_tried_again_a_few_times(store: Store) -> None:
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked("Cat"), "list", stub.DAYS, skip=False)

    def breaks(standing: Any) -> Any:
        raise StoreUnavailable("no answer")
        yield

    for _ in range(work.ATTEMPTS):
        assert work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0) == ["R-1"]
        assert work.take_down(ledger, "R-1", "w", 1.0, breaks) == ("failed", "no answer")
    assert work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0) == []
    assert work.plan_open(ledger, "w", lambda one: "", {}, again=True, most=0) == ["R-1"]


def test_a_run_takes_as_many_as_it_holds_and_leaves_the_rest_open(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MOST", 2)
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked("Cat", "Tower", "Bear"), "list", stub.DAYS, skip=False)
    assert work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0) == ["R-1", "R-2"]
    assert [one.request_id for one in work.open_requests(ledger)] == ["R-1", "R-2", "R-3"]
    for request_id in ("R-1", "R-2"):
        work.take_down(ledger, request_id, "w", 1.0, stub.erase)
    assert work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0) == ["R-3"]


def test_what_is_wrong_with_a_request_is_known_before_any_work(store: Store) -> None:
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked("Cat", "Tower"), "list", stub.DAYS, skip=False)
    chosen = work.plan_open(ledger, "w", lambda one: "no such style" if one.concept == "Cat" else "", {}, False, 0)
    assert chosen == ["R-2"]
    assert ledger.standing("R-1").state == "failed"
    assert ledger.standing("R-1").facts["reason"] == "no such style"


def test_the_first_due_come_first_and_no_more_than_asked(store: Store) -> None:
    ledger = Ledger(store, "anna")
    rows = [
        request(request_id="late", concept="Cat", regime="gdpr"), request(request_id="soon", concept="Tower"),
        request(request_id="now", concept="Bear", due_at="2026-11-24T10:00:00Z"),
    ]  # fmt: skip
    work.take_in(ledger, rows, "list", stub.DAYS, skip=False)
    assert work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=2) == ["now", "soon"]
    assert ledger.standing("late").state == "received"


def test_contradictions_stop_a_list_or_are_left_out(store: Store) -> None:
    rows = [*asked("Cat", "Tower"), request(request_id="R-3", concept="Cat", surrogate="Dog")]
    ledger = Ledger(store, "anna")
    with pytest.raises(InputError, match="agree on one surrogate"):
        work.take_in(ledger, rows, "list", stub.DAYS, skip=False)
    assert states(store) == {}
    taken = work.take_in(ledger, rows, "list", stub.DAYS, skip=True)
    assert (taken.new, len(taken.left_out)) == (1, 1)
    assert states(store) == {"R-2": "received"}


def test_a_request_at_work_elsewhere_is_left_alone_and_taken_over_when_its_lease_is_out(store: Store) -> None:
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked("Cat"), "list", stub.DAYS, skip=False)
    work.plan_open(ledger, "dead", lambda one: "", {}, again=False, most=0)
    ledger.append([Event("R-1", "erasing", lease("dead", 0.005))])
    assert work.open_requests(Ledger(store, "bert")) == []
    outcome = work.take_down(Ledger(store, "bert"), "R-1", "alive", 1.0, stub.erase)
    assert outcome.state == "erasing"
    assert "dead is at it until" in outcome.reason
    time.sleep(0.4)
    assert [one.request_id for one in work.open_requests(Ledger(store, "bert"))] == ["R-1"]
    assert work.take_down(Ledger(store, "bert"), "R-1", "alive", 1.0, stub.erase) == ("registered", "")
    assert Ledger(store, "x").standing("R-1").attempts == 1, "taken over from erasing, it is the same attempt"


def test_a_worker_notices_that_its_request_was_withdrawn_and_stops(store: Store) -> None:
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked("Cat"), "list", stub.DAYS, skip=False)
    work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0)

    def meanwhile(standing: Any) -> Any:
        yield "erasing", {}
        notice = request(request_id="C-1", counter_notice_of="R-1", **NOTICE)
        work.take_in(Ledger(store, "bert"), [notice], "second list", stub.DAYS, skip=False)
        yield "evaluated", {}
        raise AssertionError("went on with a request that was withdrawn")

    outcome = work.take_down(ledger, "R-1", "w", 1.0, meanwhile)
    assert outcome.state == "withdrawn"
    assert "cannot become evaluated" in outcome.reason


def test_a_lease_is_renewed_while_the_work_goes_on(store: Store) -> None:
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked("Cat"), "list", stub.DAYS, skip=False)
    ledger.append([Event("R-1", "planned"), Event("R-1", "erasing", lease("w", 0.04))])
    with renewed(ledger, ["R-1"], "w", 0.04):
        time.sleep(3)  # longer than the lease
        assert work.open_requests(Ledger(store, "bert")) == []
    count = ledger.standing("R-1").events
    assert count >= 4
    time.sleep(2.5)
    assert Ledger(store, "x").standing("R-1").events == count, "and no longer"
    assert work.open_requests(Ledger(store, "bert")) != []


def test_a_renewal_at_the_very_moment_of_a_step_does_not_take_the_step_back(store: Store) -> None:
    ledger = Ledger(store, "anna")
    requests = asked(*(f"concept {i}" for i in range(40)))
    work.take_in(ledger, requests, "list", stub.DAYS, skip=False)

    def steps(standing: Any) -> Any:
        for state in ("erasing", "evaluated", "registered"):
            time.sleep(0.003)
            yield state, {}

    for request_id in work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0):
        assert work.take_down(ledger, request_id, "w", 0.00005, steps) == ("registered", "")


def test_a_withdrawn_concept_leaves_the_bundle_and_the_others_stay(store: Store) -> None:
    stub.run(store, "run-1", asked("Cat", "Tower"))
    notice = request(request_id="C-1", counter_notice_of="R-1", **NOTICE)
    assert stub.run(store, "run-2", [notice]) == []
    assert states(store) == {"R-1": "withdrawn", "R-2": "done", "C-1": "done"}
    assert Ledger(store, "x").standing("R-1").facts["by"] == "C-1"
    assert erased(store) == {"Tower"}


def test_a_request_that_asks_for_the_same_keeps_it_away_when_the_first_is_withdrawn(store: Store) -> None:
    first, second = asked("Cat", "Cat")
    first = request(request_id="R-1", concept="Cat", surrogate="Photo", aliases=["Kitty"])
    stub.run(store, "run-1", [first, second])
    assert states(store) == {"R-1": "done", "R-2": "done"}
    assert history(store, "R-2") == ["received", "planned", "done"], "erased once"
    stub.run(store, "run-2", [request(request_id="C-1", counter_notice_of="R-1", **NOTICE)])
    assert states(store) == {"R-1": "withdrawn", "R-2": "done", "C-1": "done"}
    (row,) = stub.Champion(store).read()[1]
    assert (row["concept"], row["aliases"]) == ("Cat", []), "but no more than what is asked for still"


def test_what_was_in_the_bundle_before_stays_and_a_rollback_is_made_up_for(store: Store) -> None:
    champion = stub.Champion(store)
    champion.promote(0, [{"concept": "Bear", "surrogate": "Photo", "aliases": []}])
    stub.run(store, "run-1", asked("Cat"))
    assert erased(store) == {"Bear", "Cat"}
    champion.promote(2, [{"concept": "Bear", "surrogate": "Photo", "aliases": []}])  # rolled back by hand
    stub.run(store, "run-2", [])
    assert erased(store) == {"Bear", "Cat"}
    assert history(store, "R-1")[-3:] == ["done", "in_bundle", "done"]


def test_what_has_no_room_waits_and_the_first_due_go_first(store: Store) -> None:
    ledger = Ledger(store, "anna")
    rows = [
        request(request_id="late", concept="Cat", regime="gdpr"),
        request(request_id="soon", concept="Tower", aliases=["Spire"]),
    ]
    work.take_in(ledger, rows, "list", stub.DAYS, skip=False)
    for request_id in work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0):
        work.take_down(ledger, request_id, "w", 1.0, stub.erase)
    found = wanted(ledger, Deployed("spare.stub", None, None), 2)
    assert (found.requests, found.no_room) == (["soon"], ["late"])


def test_a_bundle_under_another_name_takes_everything_that_is_asked_for(store: Store) -> None:
    """For a higher rank: an adapter that is swapped for another must have its rank."""
    stub.run(store, "run-1", asked("Cat", "Tower"))
    ledger = Ledger(store, "anna")
    assert ledger.about == ("spare.stub", "b")
    larger = {"bundle": "spare.stub-larger", "base": "b"}
    found = wanted(ledger, Deployed(larger["bundle"], None, None), 64)
    assert (found.requests, found.without) == (["R-1", "R-2"], [])
    assert claim(ledger, found.requests, "run-2", 1.0, larger) == ""
    champion = stub.Champion(store).deployed()._replace(name=larger["bundle"])
    settle(ledger, champion, "run-2", "it was not promoted")
    assert states(store) == {"R-1": "done", "R-2": "done"}
    assert Ledger(store, "x").about == ("spare.stub-larger", "b")


def test_a_bundle_is_made_by_one_run_and_left_to_the_next_when_that_fails(store: Store) -> None:
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked("Cat"), "list", stub.DAYS, skip=False)
    work.plan_open(ledger, "w", lambda one: "", {}, again=False, most=0)
    work.take_down(ledger, "R-1", "w", 1.0, stub.erase)
    assert claim(ledger, ["R-1"], "first", 1.0, stub.FACTS) == ""
    assert "first is at it" in claim(Ledger(store, "bert"), ["R-1"], "second", 1.0, stub.FACTS)
    nothing = Deployed("spare.stub", None, None)
    settle(Ledger(store, "bert"), nothing, "second", "its own end")
    assert states(store) == {"R-1": "in_bundle"}, "it is not the second one's to end"
    settle(ledger, nothing, "first", "the gate refuses it")
    standing = Ledger(store, "x").standing("R-1")
    assert (standing.state, standing.facts["reason"]) == ("registered", "the gate refuses it")
    assert claim(Ledger(store, "bert"), ["R-1"], "second", 1.0, stub.FACTS) == ""


def stubbed(*arguments: str) -> Any:
    """What the stub prints, in a process that forks."""
    command = [sys.executable, "-m", "tests.support.takedown_stub", *arguments]
    done = forking.run(command, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_all_done(store: Store, count: int) -> None:
    """Each request is where it belongs, the champion erases exactly what was asked for, and the chain holds."""
    requests = stub.requests_of(range(1, count + 1))
    wrong = {one.request_id for one in requests if one.concept.startswith("fails")}
    found = states(store)
    assert {name for name, state in found.items() if state == "failed"} == wrong
    assert {name for name, state in found.items() if state == "done"} == {one.request_id for one in requests} - wrong
    rows = stub.Champion(store).read()[1]
    wanted_names = sorted(name for one in requests if one.request_id not in wrong for name in one.names)
    assert sorted(name for row in rows for name in (row["concept"], *row["aliases"])) == wanted_names
    Ledger(store, "reader").check_packed()


def test_two_runs_at_once_do_each_request_once(store: Store) -> None:
    assert stubbed("raced", store.uri, "9") == [0, 0]
    stub.run(store, "last", [])  # one of the two bundles was made first, and lost what the other did since
    check_all_done(store, 9)
    for one in stub.requests_of(range(1, 10)):
        assert [history(store, one.request_id).count(state) for state in ("evaluated", "registered")] == [1, 1]


def test_killed_at_any_moment_the_next_run_completes_it(store: Store) -> None:
    done = stubbed("killed", store.uri, "12", "15")
    assert done["killed"] == 12
    check_all_done(store, done["requests"])
    for one in stub.requests_of(range(1, done["requests"] + 1)):
        assert history(store, one.request_id).count("registered") <= 1, "erased a second time, for nothing"
