"""Large lists and long ledgers: whole processes, with their imports, against a local S3 server.

    python -m benchmarks.takedown_scale --rows 10000 --events 100000 --kills 100

``plan`` reads a CSV of so many rows; ``taking in`` is what the plan task does with it; ``status`` reads and checks a
ledger of as many requests and so many events, one an entry but for those that are entered together. ``kills``: a run
whose erasures take milliseconds dies at a random one of its accesses to a folder, before or after it, so many times;
each time another run goes on, and in the end every request must be where it belongs, once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from serving.services import s3_server
from spare_core.errors import ObjectExists, ObjectMissing
from spare_core.store import open_store
from spare_core.takedown.leases import lease
from spare_core.takedown.ledger import Event, Ledger
from spare_core.takedown.reading import read_list
from spare_core.takedown.request import TakedownRequest
from spare_core.takedown.work import plan_open, take_in
from tests.support.takedown_stub import DAYS, FACTS
from tests.takedown.test_work import check_all_done

BUCKET = "benchmark"
STEPS = ("erasing", "erasing", "evaluated", "registered", "in_bundle", "done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, s3_server(Path(temporary), BUCKET) as environment:
        folder = Path(temporary)
        os.environ |= environment
        listed = folder / "list.csv"
        write(listed, given.rows)
        told("plan", given.rows, "rows", ["plan", str(listed), "--store", f"s3://{BUCKET}/empty", "--json"])
        requests, ledger = filled(listed, given.events)
        print(f"| taking in | {len(requests)} rows | {ledger.seconds:.1f} | |")
        upload(ledger, f"s3://{BUCKET}/full")
        events = sum(one.events for one in Ledger(ledger.memory, "x").standings.values())
        told("status", events, "events", ["status", "--store", f"s3://{BUCKET}/full", "--json"])
        kills(folder / "killed", given.kills, given.seed)


def write(listed: Path, rows: int) -> None:
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request_id", "concept", "kind", "surrogate", "regime", "received_at", "requester"])
        for i in range(rows):
            received = "2026-11-24T09:00:00Z"
            writer.writerow([f"R-{i:06d}", f"Concept {i}", "style", "a plain style", "gdpr", received, f"case-{i}"])


def told(what: str, count: int, of: str, arguments: Sequence[str]) -> None:
    """The time and the memory of ``spare takedown``, as a row."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "spare_core.cli", "takedown", *arguments], capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1):  # 1: some are late, for a monitor
        sys.exit(done.stderr)
    report = json.loads(done.stdout)
    rows = len(report.get("steps") or report["requests"])
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10
    print(f"| {what}: {rows} requests | {count} {of} | {seconds:.1f} | {peak} |", flush=True)


class Memory:
    """A store in memory, as much of one as a ledger needs."""

    uri = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def read(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key]

    def create(self, key: str, content: bytes) -> None:
        if key in self.objects:
            raise ObjectExists(key)
        self.objects[key] = content

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(f"{prefix}/"))

    def uri_of(self, key: str) -> str:
        return key


class Filled:
    """A ledger in memory, and how long taking its list in took."""

    def __init__(self) -> None:
        self.memory = cast(Any, Memory())
        self.ledger, self.seconds = Ledger(self.memory, "benchmark"), 0.0


def filled(listed: Path, events: int) -> tuple[list[TakedownRequest], Filled]:
    """Every request done, with leases renewed until there are so many events."""
    made = Filled()
    started = time.perf_counter()
    requests = [row.request for row in read_list(listed).rows]
    take_in(made.ledger, requests, str(listed), DAYS, skip=False)
    plan_open(made.ledger, "w", lambda one: "", FACTS, again=False, most=0)
    made.seconds = time.perf_counter() - started
    renewals = max(0, events // len(requests) - 2 - len(STEPS))
    facts = {"row": {"concept": "c", "surrogate": "s", "aliases": [], "keep": [], "kind": "style"}}
    for one in requests:
        for state in ("erasing", "erasing", *["erasing"] * renewals, "evaluated", "registered"):
            made.ledger.append([Event(one.request_id, state, {**facts, **lease("w", 15.0)})])
    for state in ("in_bundle", "done"):
        made.ledger.say(
            lambda state=state: [Event(one.request_id, state, lease("w", 15.0)) for one in requests]  # type: ignore[misc]
        )
    return requests, made


def upload(made: Filled, uri: str) -> None:
    """Every object of the ledger, as it lies in memory."""
    store = open_store(uri)

    def send(item: tuple[str, bytes]) -> None:
        store.create(*item)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(send, _needed(made)))


def _needed(made: Filled) -> Iterator[tuple[str, bytes]]:
    """What reading a ledger asks for: the packs, and the entries of the last folder; the entries in packs are for
    ``--deep``."""
    packs = len(made.memory.list("ledger/packs"))
    for key, content in made.memory.objects.items():
        if key.startswith("ledger/packs/") or key.startswith(f"ledger/entries/{packs:04d}/"):
            yield key, content


def kills(folder: Path, count: int, seed: int) -> None:
    folder.mkdir()
    started = time.perf_counter()
    command = [sys.executable, "-m", "tests.support.takedown_stub", "killed", str(folder), str(count), str(seed)]
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds = time.perf_counter() - started
    store = open_store(str(folder))
    check_all_done(store, done["requests"])
    entries = [json.loads(store.read(key))["events"] for key in store.list("ledger/entries")]
    made = Counter(event["request_id"] for events in entries for event in events if event["state"] == "registered")
    print(f"\n{done['killed']} kills in {seconds:.0f} s: {done['requests']} requests, all where they belong;")
    print(f"{sum(count > 1 for count in made.values())} erased more than once; a chain of {len(entries)} entries")


if __name__ == "__main__":
    main()
