"""The ledger only grows, says what became of each request, and shows whatever was done to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from spare_core.errors import LedgerConflict, LedgerDamaged, ObjectExists
from spare_core.store import Store, open_store
from spare_core.takedown import ledger as module
from spare_core.takedown.ledger import FOLLOWING, Event, Ledger, in_chunks

DOCUMENTATION = Path(module.__file__).with_name("README.md")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of five entries."""
    monkeypatch.setattr(module, "PACK", 5)


def erasing(worker: str, seconds: float = 60.0, request_id: str = "R-1") -> Event:
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return Event(request_id, "erasing", {"worker": worker, "lease_until": until.isoformat()})


def filled(store: Store, count: int = 7) -> Ledger:
    """A ledger of that many entries, of a request each."""
    ledger = Ledger(store, "anna")
    for i in range(1, count + 1):
        ledger.append([Event(f"R-{i}", "received", {"request": {"concept": "Neon Lines"}})])
    return ledger


def entry(tmp_path: Path, number: int) -> Path:
    return tmp_path / "ledger" / "entries" / f"{(number - 1) // module.PACK:04d}" / f"{number:08d}.json"


def test_what_is_appended_is_read_back(store: Store) -> None:
    ledger = Ledger(store, "anna")
    ledger.append([Event("R-1", "received", {"request": {"concept": 'a "b"\n🎨'}}), Event("R-2", "received")])
    ledger.append([Event("R-1", "planned", {"surrogate": "Photo"})])
    ledger.append([])
    again = Ledger(store, "bert")
    assert again.standings == ledger.standings
    one = again.standing("R-1")
    assert (one.state, one.entry, one.events) == ("planned", 2, 2)
    assert one.facts == {"request": {"concept": 'a "b"\n🎨'}, "surrogate": "Photo", "actor": "anna"}
    assert again.standing("R-9").state == ""
    assert (again.number, again.sha256) == (ledger.number, ledger.sha256) == (2, ledger.hashes[1])


def test_every_state_is_reached_and_only_what_is_allowed_follows(store: Store) -> None:
    reached = {after for states in FOLLOWING.values() for after in states}
    assert reached == set(FOLLOWING) - {""}
    ledger = Ledger(store, "anna")
    with pytest.raises(LedgerConflict, match="R-1 is unknown and cannot become done"):
        ledger.append([Event("R-1", "done")])
    ledger.append([Event("R-1", "received")])
    with pytest.raises(LedgerConflict, match=r"R-1 is received \(anna, entry 1\) and cannot become done"):
        ledger.append([Event("R-2", "received"), Event("R-1", "done")])
    assert Ledger(store, "bert").standing("R-2").state == "", "all of an entry or nothing"
    ledger.append([Event("R-2", "received"), Event("R-2", "planned"), Event("R-2", "blocked")])
    assert ledger.standing("R-2").state == "blocked"


def test_of_two_workers_one_gets_a_request(store: Store) -> None:
    first, second = filled(store, 1), Ledger(store, "bert")
    for ledger in (first, second):
        assert ledger.standing("R-1").state == "received"
    first.append([Event("R-1", "planned"), erasing("w1")])
    with pytest.raises(LedgerConflict):
        second.append([Event("R-1", "planned"), erasing("w2")])
    with pytest.raises(LedgerConflict, match="R-1 is erasing: w1 is at it until "):
        second.append([erasing("w2")])
    assert Ledger(store, "x").standing("R-1").facts["worker"] == "w1"


def test_a_lease_is_renewed_by_its_worker_and_taken_over_when_it_has_run_out(store: Store) -> None:
    ledger = filled(store, 1)
    ledger.append([Event("R-1", "planned")])
    ledger.append([erasing("w1", seconds=-1)])
    assert not ledger.standing("R-1").leased(datetime.now(UTC))
    ledger.append([erasing("w2")])
    ledger.append([erasing("w2", seconds=120)])
    with pytest.raises(LedgerConflict, match="w2 is at it"):
        ledger.append([Event("R-1", "evaluated", {"worker": "w1"})])
    ledger.append([Event("R-1", "evaluated", {"worker": "w2"})])
    assert ledger.standing("R-1").attempts == 1


@pytest.mark.usefixtures("small")
def test_many_writers_lose_nothing(store: Store) -> None:
    """Each with its own view, all at once; every entry is there, in one chain."""

    def write(worker: int) -> None:
        ledger = Ledger(store, f"w{worker}")
        for i in range(8):
            ledger.append([Event(f"R-{worker}-{i}", "received")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    read = Ledger(store, "auditor")
    assert set(read.standings) == {f"R-{worker}-{i}" for worker in range(4) for i in range(8)}
    assert read.number == 32
    assert len(store.list("ledger/packs")) == 6
    read.check_packed()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seen", [1, 4])
def test_what_is_added_while_it_is_read_is_no_damage(store: Store, seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others fill a folder and begin the next one between the listings of the two."""
    filled(store, 7)
    shutil.rmtree(Path(store.uri) / "ledger" / "packs")
    listing, first = type(store).list, True

    def stale(self: Store, prefix: str = "") -> list[str]:
        nonlocal first
        found = listing(self, prefix)
        if prefix == "ledger/entries/0000" and first:
            first = False
            return found[:seen]
        return found

    monkeypatch.setattr(type(store), "list", stale)
    assert Ledger(store, "reader").number == 7


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [2, 5])
def test_an_entry_that_was_removed_is_missed_though_later_ones_are_there(store: Store, number: int) -> None:
    filled(store, 7)
    shutil.rmtree(Path(store.uri) / "ledger" / "packs")
    entry(Path(store.uri), number).unlink()
    with pytest.raises(LedgerDamaged, match=rf"entry {number} of the ledger .* is missing"):
        Ledger(store, "reader")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [4, 5, 6, 10, 11])
def test_packs_hold_the_entries_byte_for_byte_and_are_read_in_their_place(
    store: Store, tmp_path: Path, count: int
) -> None:
    ledger = filled(store, count)
    packs = sorted((tmp_path / "ledger" / "packs").glob("*")) if count > 5 else []
    assert len(packs) == (count - 1) // 5
    assert b"".join(pack.read_bytes() for pack in packs) == b"".join(
        entry(tmp_path, number).read_bytes() for number in range(1, 5 * len(packs) + 1)
    )
    again = Ledger(store, "bert")
    assert (again.hashes, again.standings) == (ledger.hashes, ledger.standings)
    again.append([Event("more", "received")])
    assert Ledger(store, "x").number == count + 1


@pytest.mark.usefixtures("small")
def test_a_worker_that_died_before_or_after_packing_is_no_obstacle(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, 5)
    create = type(store).create
    for dies_at in ("packs", "entries"):

        def dying(self: Store, key: str, content: bytes, dies_at: str = dies_at) -> None:
            if dies_at in key:
                raise KeyboardInterrupt
            create(self, key, content)

        monkeypatch.setattr(type(store), "create", dying)
        with pytest.raises(KeyboardInterrupt):
            Ledger(store, "dying").append([Event("R-6", "received")])
    monkeypatch.setattr(type(store), "create", create)
    Ledger(store, "next").append([Event("R-6", "received")])
    assert Ledger(store, "x").number == 6


def test_an_answer_that_was_lost_is_no_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(store, "anna")
    create = type(store).create

    def losing(self: Store, key: str, content: bytes) -> None:
        create(self, key, content)
        raise ObjectExists("sent again after the answer was lost")

    monkeypatch.setattr(type(store), "create", losing)
    ledger.append([Event("R-1", "received")])
    assert (ledger.number, ledger.standing("R-1").state) == (1, "received")


# --- what is done to it ----------------------------------------------------------------------------------------------


def edit(path: Path, **changes: Any) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_bytes(module._line(values))


def test_an_entry_that_was_changed_is_named(store: Store, tmp_path: Path) -> None:
    filled(store)
    edit(entry(tmp_path, 3), actor="mallory")
    with pytest.raises(LedgerDamaged, match=r"entry 4 .*; entry 3 was changed, or one was removed"):
        Ledger(store, "auditor")


def test_the_last_entry_changed_shows_against_a_head_that_was_noted(store: Store, tmp_path: Path) -> None:
    ledger = filled(store)
    ledger.check_head(7, ledger.sha256)
    edit(entry(tmp_path, 7), actor="mallory")
    with pytest.raises(LedgerDamaged, match=r"entry 7 of the ledger was .*one was removed or replaced"):
        Ledger(store, "auditor").check_head(7, ledger.sha256)
    entry(tmp_path, 7).unlink()
    with pytest.raises(LedgerDamaged, match=r"entry 7 of the ledger was .* and is gone now"):
        Ledger(store, "auditor").check_head(7, ledger.sha256)


@pytest.mark.parametrize("number", [1, 3, 6])
def test_an_entry_that_was_removed_is_named(store: Store, tmp_path: Path, number: int) -> None:
    filled(store)
    entry(tmp_path, number).unlink()
    with pytest.raises(LedgerDamaged, match=rf"entry {number} of the ledger .* is missing"):
        Ledger(store, "auditor")


def test_entries_that_changed_places_are_named(store: Store, tmp_path: Path) -> None:
    filled(store)
    third, fourth = (entry(tmp_path, number).read_bytes() for number in (3, 4))
    entry(tmp_path, 3).write_bytes(fourth)
    entry(tmp_path, 4).write_bytes(third)
    with pytest.raises(LedgerDamaged, match=r"entry 3 .* says spare.ledger/1 4: it is out of turn"):
        Ledger(store, "auditor")
    edit(entry(tmp_path, 3), number=3)
    edit(entry(tmp_path, 4), number=4)
    with pytest.raises(LedgerDamaged, match=r"entry 3 .* follows"):
        Ledger(store, "auditor")


@pytest.mark.parametrize("content", [b"", b"null\n", b"{}\n", b"\xff", b'{"schema":"spare.ledger/1"}\n'])
def test_rubbish_in_place_of_an_entry_is_named(store: Store, tmp_path: Path, content: bytes) -> None:
    filled(store)
    entry(tmp_path, 2).write_bytes(content)
    with pytest.raises(LedgerDamaged, match=r"entry 2 .* is no entry of it"):
        Ledger(store, "auditor")


def test_an_event_that_cannot_be_is_named_even_in_a_chain_that_holds(store: Store, tmp_path: Path) -> None:
    ledger = filled(store, 1)
    values = {
        **json.loads(entry(tmp_path, 1).read_text()), "number": 2, "previous_sha256": ledger.sha256,
        "events": [{"request_id": "R-1", "state": "done"}],
    }  # fmt: skip
    entry(tmp_path, 2).write_bytes(module._line(values))
    with pytest.raises(LedgerDamaged, match=r"entry 2 .* makes R-1 done, which was received"):
        Ledger(store, "auditor")


@pytest.mark.usefixtures("small")
def test_a_pack_that_was_changed_is_named_and_an_entry_below_it_when_asked(store: Store, tmp_path: Path) -> None:
    filled(store)
    edit(entry(tmp_path, 2), actor="mallory")
    with pytest.raises(LedgerDamaged, match=r"entry 2 .* is not the one in its pack"):
        Ledger(store, "auditor").check_packed()
    pack = tmp_path / "ledger" / "packs" / "0000.jsonl"
    whole = pack.read_bytes()
    pack.write_bytes(whole.replace(b"anna", b"bert", 1))
    with pytest.raises(LedgerDamaged, match=r"entry 2 .*packs/0000.jsonl.*; entry 1 was changed"):
        Ledger(store, "auditor")
    pack.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    with pytest.raises(LedgerDamaged, match="holds 4 entries, not 5"):
        Ledger(store, "auditor")


def test_many_events_are_cut_into_entries() -> None:
    chunks = list(in_chunks((Event(str(i), "received") for i in range(1001)), 500))
    assert [len(chunk) for chunk in chunks] == [500, 500, 1]
    assert list(in_chunks([], 500)) == []


def test_an_auditor_needs_ten_lines_and_none_of_ours(store: Store, tmp_path: Path) -> None:
    """Those of the documentation, in a Python of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    filled(store)

    def verified() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-c", code, str(tmp_path / "ledger" / "entries")], capture_output=True, text=True
        )

    good = verified()
    assert good.returncode == 0 and good.stdout.startswith("7 entries, last "), good.stderr
    edit(entry(tmp_path, 3), actor="mallory")
    bad = verified()
    assert bad.returncode != 0 and "00000004.json" in bad.stderr
