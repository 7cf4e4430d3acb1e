"""Prometheus is told what is due, late and failed, and whether the records are whole, over HTTP and from the record."""

from __future__ import annotations

import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.services import free_port, process, s3_server
from spare_core.errors import StoreError
from spare_core.registry.log import Aliases, PromotionLog
from spare_core.store import open_store
from spare_core.takedown.ledger import Event, Ledger
from spare_core.takedown.monitoring import Watch
from tests.support import forking

MODEL = "spare.canvas"
METRICS = [sys.executable, "-m", "spare_core.cli", "takedown", "metrics", "--store"]


def received(request_id: str, hours: float) -> Event:
    due_at = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
    return Event(request_id, "received", {"request": {"concept": request_id}, "due_at": due_at})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with a late request, one that is due soon, one that failed and is due later, and one that is done."""
    store = open_store(str(tmp_path / "store"))
    ledger = Ledger(store, "anna")
    ledger.append([received("late", -1), received("soon", 3), received("failed", 90), received("done", -1)])
    for state, facts in (("planned", {}), ("erasing", {}), ("evaluated", {}), ("registered", {"seconds": 12.5}),
                         ("in_bundle", {}), ("done", {})):  # fmt: skip
        ledger.append([Event("done", state, facts)])
    ledger.append([Event("failed", "planned")])
    ledger.append([Event("failed", "erasing")])
    ledger.append([Event("failed", "failed", {"reason": "the gate"})])
    log = PromotionLog(store, MODEL)
    first = log.append(None, "promote", "anna", Aliases(), Aliases(champion=1))
    log.append(first, "finish", "anna", Aliases(), Aliases(champion=1), of=1, outcome="done")
    return tmp_path / "store"


def figures(text: str) -> dict[str, float]:
    return {
        "".join([sample.name, *(f" {value}" for value in sample.labels.values())]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def looked(folder: Path) -> dict[str, float]:
    watch = Watch(open_store(str(folder)))
    watch.look()
    return figures(watch.text())


def test_requests_are_counted_by_state_and_by_deadline(folder: Path) -> None:
    found = looked(folder)
    assert found["spare_takedown_late"] == 1
    assert found["spare_takedown_due_within_24h"] == 1
    states = {name.split()[1]: value for name, value in found.items() if name.startswith("spare_takedown_requests ")}
    assert {state: count for state, count in states.items() if count} == {"received": 2, "failed": 1, "done": 1}
    assert states["blocked"] == 0  # an alert needs a series to compare with before the first one
    assert (found["spare_takedown_erasure_seconds_count"], found["spare_takedown_erasure_seconds_sum"]) == (1, 12.5)


def test_the_records_are_whole_until_somebody_touches_them(folder: Path) -> None:
    found = looked(folder)
    assert (found["spare_ledger_whole"], found["spare_ledger_entries"]) == (1, 10)
    assert (found[f"spare_promotion_log_whole {MODEL}"], found[f"spare_promotions_total {MODEL}"]) == (1, 1)

    entry = folder / "promotions" / MODEL / "00000002.json"
    entry.write_bytes(entry.read_bytes().replace(b"anna", b"eve"))
    (folder / "promotions" / MODEL / "00000001.json").unlink()
    entry = folder / "ledger" / "entries" / "0000" / "00000003.json"
    entry.write_bytes(entry.read_bytes().replace(b"anna", b"eve"))
    found = looked(folder)
    assert found["spare_ledger_whole"] == 0
    assert found[f"spare_promotion_log_whole {MODEL}"] == 0
    assert f"spare_promotions_total {MODEL}" not in found


def test_before_the_first_look_nothing_is_claimed(folder: Path) -> None:
    assert figures(Watch(open_store(str(folder))).text()) == {"spare_audit_read_timestamp_seconds": 0}


def test_a_store_that_cannot_be_reached_leaves_the_figures_and_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path, "bucket") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        watch = Watch(open_store("s3://bucket/dev"))
        Ledger(watch.store, "anna").append([received("late", -1)])
        watch.look()
        before = watch.text()
    assert figures(before)["spare_takedown_late"] == 1
    with pytest.raises(StoreError):
        watch.look()
    assert watch.text() == before


def test_they_are_served_and_follow_the_ledger(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [*METRICS, str(folder), "--port", str(port), "--every", "1"]

    def served() -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return figures(answer.read().decode())
        except OSError:
            return {}

    def until(late: int) -> bool:
        deadline = time.monotonic() + 60
        while served().get("spare_takedown_late") != late:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    with process(command, tmp_path / "log", {}):
        assert until(1), (tmp_path / "log").read_text()
        Ledger(open_store(str(folder)), "anna").append([received("another", -2)])
        assert until(2)


def test_a_store_that_is_not_there_is_told_before_anything_is_served(tmp_path: Path) -> None:
    command = [*METRICS, str(tmp_path / "nowhere"), "--port", str(free_port())]
    refused = forking.run(command, timeout=60)
    assert refused.returncode == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in refused.stderr


def test_printed_once_and_a_port_that_is_taken(folder: Path) -> None:
    once = forking.run([*METRICS, str(folder)])
    assert once.returncode == 0, once.stderr
    assert figures(once.stdout)["spare_takedown_late"] == 1
    taken = forking.run([*METRICS, str(folder), "--port", "1", "--host", "203.0.113.1"])
    assert taken.returncode == 2
    assert "cannot serve on 203.0.113.1:1" in taken.stderr
