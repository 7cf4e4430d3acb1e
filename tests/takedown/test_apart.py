"""A request whose process dies is its own misfortune: entered, tried a few times, then given up, and nobody else's."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spare_core.errors import GateRefused, InputError, LedgerConflict, StoreUnavailable
from spare_core.store import Store, open_store
from spare_core.takedown import tasks, work
from spare_core.takedown.apart import enter_death, memory_bound, run_apart
from spare_core.takedown.bundling import settle
from spare_core.takedown.leases import LOST, check_clock, lease, renewed
from spare_core.takedown.ledger import Event, Ledger
from spare_core.takedown.parameters import check_batch
from spare_core.workflow.travelling import send
from tests.support import takedown_stub as stub
from tests.takedown.test_erasing import GIVEN
from tests.takedown.test_lists import request
from tests.takedown.test_work import asked, states


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_ended_a_process_is_told() -> None:
    assert run_apart(python("pass"), None) == ""
    assert run_apart(python("raise SystemExit(3)"), None) == "its process ended with exit code 3"
    killed = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run_apart(killed, None) == "its process was ended by SIGKILL"


def test_a_process_that_takes_too_much_memory_is_ended_before_the_kernel_ends_both() -> None:
    """This process's own counts too: they share the bound."""
    own = int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024
    grows = "x = []\nwhile True: x.append(b'x' * (8 << 20)); import time; time.sleep(0.01)"
    begun = time.monotonic()
    ended = run_apart(python(grows), own + 400 * 2**20)
    assert ended.endswith("MiB of memory that there are, and was ended")
    assert time.monotonic() - begun < 30
    assert run_apart(python("b'x' * (50 << 20)"), own + 400 * 2**20) == ""


def test_the_bound_is_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second, first = tmp_path / "memory.max", tmp_path / "limit"
    monkeypatch.setattr("spare_core.takedown.apart._LIMITS", (second, first))
    assert memory_bound() is None
    first.write_text("1024\n")
    assert memory_bound() == 1024
    second.write_text("2048\n")
    assert memory_bound() == 2048
    second.write_text("max\n")
    first.unlink()
    assert memory_bound() is None


def test_a_death_is_entered_for_the_next_night_and_only_where_it_was_at_work(store: Store) -> None:
    ledger = Ledger(store, "w")
    work.take_in(ledger, asked("Cat", "Dog"), "list", stub.DAYS, skip=False)
    work.plan_open(ledger, "w", lambda one: "", stub.FACTS, again=False, most=0)
    ledger.append([Event("R-1", "erasing", lease("w", 15))])
    enter_death(Ledger(store, "w"), "R-1", "another", "its process was ended by SIGKILL")
    assert states(store)["R-1"] == "erasing", "somebody else's"
    for one in ("R-1", "R-2"):  # the second one had not even begun
        enter_death(Ledger(store, "w"), one, "w", "its process was ended by SIGKILL")
        standing = Ledger(store, "x").standing(one)
        assert (standing.state, standing.attempts) == ("failed", 1)
        assert standing.facts["reason"] == "its process was ended by SIGKILL"
    assert stub.run(store, "next", []) == ["R-1", "R-2"]
    assert states(store) == {"R-1": "done", "R-2": "done"}


def test_the_task_of_a_request_whose_process_dies_succeeds(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or KFP would let no bundle be made after it. This process alone is larger than the bound."""
    monkeypatch.setenv("SPARE_STORE", store.uri)
    monkeypatch.setenv("SPARE_RUN_ID", "w")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tasks, "memory_bound", lambda: 2**20)
    batch = check_batch(GIVEN)
    work.take_in(Ledger(store, "w"), asked("Neon Lines"), "list", stub.DAYS, skip=False)
    work.plan_open(Ledger(store, "w"), "w", batch.wrong_with, batch.about(), again=False, most=0)
    assert tasks.take_down_task(send(store, batch.to_json()), "R-1") == "failed"
    facts = Ledger(store, "x").standing("R-1").facts
    assert facts["reason"].endswith("MiB of memory that there are, and was ended")
    assert facts["retry"]


def killed(standing: Any) -> Iterator[work.Told]:
    """As the kernel does it where a container's memory is short: nothing is entered."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield "erasing", {}


def night(store: Store, name: str, again: bool = False) -> list[str]:
    """A batch whose tasks are killed, three times each as KFP tries them, and its exit handler."""
    chosen = work.plan_open(Ledger(store, name), name, lambda one: "", stub.FACTS, again, 0)
    for request_id in chosen:
        erase = killed if request_id == "R-1" else stub.erase
        for _ in range(3):
            task = partial(work.take_down, Ledger(store, name), request_id, name, 15, erase)
            stub.ended(stub.in_a_process(task))
    settle(Ledger(store, name), stub.Champion(store).deployed(), name, "the bundle was not promoted")
    return chosen


def test_a_request_that_kills_its_whole_task_is_given_up_after_three_nights(store: Store) -> None:
    work.take_in(Ledger(store, "w"), asked("Cat", "Dog"), "list", stub.DAYS, skip=False)
    nights = [night(store, f"night {i}") for i in range(5)]
    assert nights == [["R-1", "R-2"], ["R-1"], ["R-1"], [], []]
    standing = Ledger(store, "x").standing("R-1")
    assert (standing.state, standing.facts["retry"], standing.attempts) == ("failed", False, 3)
    assert "its worker was killed 3 times while it was at it" in standing.facts["reason"]
    assert night(store, "asked for again", again=True) == ["R-1"]
    assert night(store, "and no more") == []


def test_requests_for_the_very_same_share_one_refusal(store: Store) -> None:
    rows = [request(request_id=f"R-{i}", concept="Cat", surrogate="Dog") for i in range(1, 5)]
    rows.append(request(request_id="R-5", concept="Cat", protect=["Bird"], surrogate="Dog"))
    work.take_in(Ledger(store, "w"), rows, "list", stub.DAYS, skip=False)
    erased = []

    def refused(standing: Any) -> Iterator[work.Told]:
        erased.append(standing.request_id)
        yield "erasing", {}
        raise GateRefused("the gate refuses it", ())

    for name in ("first", "second", "third"):
        ledger = Ledger(store, name)
        for request_id in work.plan_open(ledger, name, lambda one: "", stub.FACTS, again=False, most=0):
            work.take_down(ledger, request_id, name, 15, refused)
    assert sorted(erased) == ["R-1", "R-5"], "what asks for more is asked of the model"
    assert {*states(store).values()} == {"failed"}
    assert Ledger(store, "x").standing("R-3").facts["reason"] == "R-1 asked for the same: the gate refuses it"


class Renewing:
    """A ledger that can only be renewed, or not."""

    def __init__(self, error: Exception | None, at_catching_up: Exception | None = None) -> None:
        self.error, self.at_catching_up, self.asked = error, at_catching_up, 0
        self.standings: dict[str, Any] = {}

    def renew(self, *_: Any) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def catch_up(self) -> None:
        if self.at_catching_up is not None:
            raise self.at_catching_up

    def standing(self, request_id: str) -> Any:
        return Ledger.standing(self, request_id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ledger",
    [
        Renewing(OSError("no route")),
        Renewing(RuntimeError("anything")),
        Renewing(LedgerConflict("theirs"), StoreUnavailable("away")),
    ],
)
def test_no_error_ends_the_renewing_and_a_lease_that_ran_out_ends_the_work(
    ledger: Renewing, capfd: pytest.CaptureFixture[str]
) -> None:
    lost = threading.Event()
    with renewed(ledger, ["R-1"], "w", 0.01, lambda reason: lost.set()):  # type: ignore[arg-type]
        assert lost.wait(30)
    assert ledger.asked >= 3
    assert capfd.readouterr().err.count("the lease could not be renewed: ") == ledger.asked


def test_who_lost_the_request_stops_at_once(store: Store) -> None:
    ledger = Ledger(store, "w")
    work.take_in(ledger, asked("Cat", "Dog"), "list", stub.DAYS, skip=False)
    work.plan_open(ledger, "w", lambda one: "", stub.FACTS, again=False, most=0)
    ledger.append([Event(one, "erasing", lease("w", 0.03)) for one in ("R-1", "R-2")])
    lost = threading.Event()
    with renewed(ledger, ["R-1", "R-2"], "w", 0.03, lambda reason: lost.set()):
        Ledger(store, "b").append([Event("R-1", "withdrawn")])
        assert not lost.wait(1.5), "one of two is theirs still"
        Ledger(store, "b").append([Event("R-2", "withdrawn")])
        assert lost.wait(30)


def test_a_process_that_lost_its_request_ends(store: Store) -> None:
    ledger = Ledger(store, "w")
    work.take_in(ledger, asked("Cat"), "list", stub.DAYS, skip=False)
    work.plan_open(ledger, "w", lambda one: "", stub.FACTS, again=False, most=0)

    def at_work() -> None:
        mine = Ledger(store, "w")
        mine.append([Event("R-1", "erasing", lease("w", 0.01))])
        with renewed(mine, ["R-1"], "w", 0.01):
            Ledger(store, "b").append([Event("R-1", "withdrawn")])
            time.sleep(60)

    assert stub.ended(stub.in_a_process(at_work)) == LOST


@pytest.mark.parametrize("skew", [-1200.0, 230.0])
def test_a_clock_that_would_take_leases_from_others_is_refused(
    store: Store, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_clock(store, 15)
    monkeypatch.setattr(store, "skew", lambda: skew)
    with pytest.raises(InputError, match=r"clock is (1200 s behind|230 s ahead of) that of .*at most 225 s"):
        check_clock(store, 15)
    check_clock(store, 90)


def test_the_clock_of_s3_is_that_of_its_answers(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{bucket}/record")
    assert abs(store.skew()) < 2
    here = time.time
    monkeypatch.setattr("spare_core.store.s3.time.time", lambda: here() + 960)
    assert store.skew() == pytest.approx(960, abs=10)
