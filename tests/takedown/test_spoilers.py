"""A bundle that the gate refuses: the request that spoils it is found and told why, and the rest goes on without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from spare_core.errors import GateRefused
from spare_core.store import Store, open_store
from spare_core.takedown import work
from spare_core.takedown.bundling import Wanted, claim, refuse, settle, wanted
from spare_core.takedown.ledger import Ledger
from spare_core.workflow.environment import RUN_ID, STORE
from spare_core.workflow.keeping import keeping
from spare_core.workflow.order import check_order
from tests.support import takedown_stub as stub
from tests.takedown.test_work import asked, erased, states
from tests.workflow.test_order import GIVEN

Gate = Callable[[list[str]], tuple[str, ...] | None]
"""From what a bundle erases: None lets it pass, else the concepts that a rule names; none, if it is of what is kept."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


def register(store: Store, *concepts: str) -> None:
    """Requests R-1, R-2, … that have an adapter each and wait for a bundle."""
    ledger = Ledger(store, "anna")
    work.take_in(ledger, asked(*concepts), "list", stub.DAYS, skip=False)
    for request_id in work.plan_open(ledger, "anna", lambda one: "", stub.FACTS, again=False, most=0):
        work.take_down(ledger, request_id, "anna", 1.0, stub.erase)


def night(store: Store, worker: str, gate: Gate, harm: bool = False) -> list[str]:
    """One run's bundle, as *gather*, *gate* and *close* make it of the ledger; which requests joined it. A refusal is
    for ``harm`` to what is kept alone, or not."""
    champion, ledger = stub.Champion(store), Ledger(store, worker)
    version, rows = champion.read()
    found = wanted(ledger, champion.deployed(), stub.RANK)
    if found.rows:
        assert claim(ledger, found.requests, worker, 1.0, stub.FACTS) == ""
        named = gate([row["concept"] for row in (*rows, *found.rows)])
        if named is None:
            champion.promote(version, [*rows, *found.rows])
        else:
            refuse(ledger, worker, GateRefused("too much is left", ["a rule"], named, harm))
    settle(Ledger(store, worker), champion.deployed(), worker, "the bundle was not promoted")
    return found.requests


def test_a_request_whose_concept_stays_fails_and_the_next_bundle_is_without_it(store: Store) -> None:
    register(store, "Cat", "Tower", "Bear")
    assert night(store, "run-1", lambda erased: ("tower",) if "Tower" in erased else None) == ["R-1", "R-2", "R-3"]
    assert states(store) == {"R-1": "registered", "R-2": "failed", "R-3": "registered"}
    ledger = Ledger(store, "reader")
    assert ledger.standing("R-2").facts["reason"] == "the bundle with it is refused: too much is left"
    assert ledger.standing("R-1").facts["reason"] == "the bundle was refused for R-2; the next is without"
    assert work.open_requests(ledger) == [], "not by itself again"
    assert [one.request_id for one in work.open_requests(ledger, again=True)] == ["R-2"]
    assert night(store, "run-2", lambda erased: None) == ["R-1", "R-3"]
    assert states(store) == {"R-1": "done", "R-2": "failed", "R-3": "done"}


def test_a_bundle_that_harms_the_rest_is_made_again_gentler_before_it_takes_fewer(store: Store) -> None:
    register(store, *"abcd")
    everybody = ["R-1", "R-2", "R-3", "R-4"]

    def next_one() -> Wanted:
        return wanted(Ledger(store, "reader"), stub.Champion(store).deployed(), stub.RANK)

    assert not next_one().gentler
    assert night(store, "run-1", lambda erased: (), harm=True) == everybody
    assert (next_one().gentler, next_one().requests, next_one().names) == (True, everybody, 4)
    assert "the next is gentler" in Ledger(store, "reader").standing("R-1").facts["reason"]
    assert night(store, "run-2", lambda erased: (), harm=True) == everybody
    assert (next_one().requests, next_one().names) == (["R-1", "R-2"], 4), "whose rank has room for the others, too"
    assert night(store, "run-3", lambda erased: None) == ["R-1", "R-2"]
    assert (next_one().gentler, next_one().requests) == (True, ["R-3", "R-4"]), "what was learnt holds for its growth"
    assert night(store, "run-4", lambda erased: None) == ["R-3", "R-4"]


@pytest.mark.parametrize("spoiler", [f"concept {i}" for i in range(1, 9)])
def test_who_harms_what_is_kept_is_found_by_halves(store: Store, spoiler: str) -> None:
    concepts = [f"concept {i}" for i in range(1, 9)]
    register(store, *concepts)
    runs = 0
    while set(states(store).values()) - {"done", "failed"}:
        runs += 1
        night(store, f"run-{runs}", lambda erased: () if spoiler in erased else None)
        assert runs <= 12
    assert erased(store) == {*concepts} - {spoiler}
    assert [name for name, state in states(store).items() if state == "failed"] == [f"R-{concepts.index(spoiler) + 1}"]


def test_where_most_are_left_the_bundle_was_too_full_and_nobody_is_to_blame(store: Store) -> None:
    register(store, *(f"concept {i}" for i in range(1, 7)))

    def crowded(erased: list[str]) -> tuple[str, ...] | None:
        return tuple(erased) if len(erased) > 3 else None

    assert len(night(store, "run-1", crowded)) == 6
    assert set(states(store).values()) == {"registered"}
    assert night(store, "run-2", crowded) == ["R-1", "R-2", "R-3"]
    assert set(states(store).values()) == {"done", "registered"}
    ledger = Ledger(store, "reader")
    found = wanted(ledger, stub.Champion(store).deployed(), stub.RANK)
    assert (found.requests, found.next_time) == (["R-4", "R-5", "R-6"], [])


def test_what_fails_because_something_deployed_came_back_is_not_blamed_on_the_first_named(store: Store) -> None:
    register(store, "Cat")
    night(store, "run-1", lambda erased: None)
    register(store, "Cat", "Tower", "Bear")  # of these the first is there already
    night(store, "run-2", lambda erased: ("Cat",))
    assert states(store) == {"R-1": "done", "R-2": "registered", "R-3": "registered"}
    assert night(store, "run-3", lambda erased: ("Cat",)) == ["R-2"], "half of them"
    assert states(store) == {"R-1": "done", "R-2": "failed", "R-3": "registered"}


def test_the_refusal_is_entered_by_the_task_in_which_it_happens(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register(store, "Cat", "Tower")
    monkeypatch.setenv(STORE, str(tmp_path / "store"))
    monkeypatch.setenv(RUN_ID, "kfp-1")
    assert claim(Ledger(store, "anna"), ["R-1", "R-2"], "kfp-1", 1.0, stub.FACTS) == ""
    order = dataclasses.replace(check_order(GIVEN)[0], held=("R-1", "R-2"), lease_minutes=1.0)
    with pytest.raises(GateRefused), keeping(order):
        raise GateRefused("too much is left", ["a rule"], ["Cat"])
    assert states(store) == {"R-1": "failed", "R-2": "registered"}
