"""A batch run whose erasures and bundles take milliseconds, behind the ledger code that the pipeline's tasks call.

``python -m tests.support.takedown_stub raced STORE COUNT``: two runs at the same moment, of as many requests.
``python -m tests.support.takedown_stub killed STORE COUNT SEED``: runs that die, as by SIGKILL, at a random one of
their accesses to the store, before or after it; each brings three new requests. Then one that is left to end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import ConceptError, ObjectExists
from spare_core.store import Store, open_store
from spare_core.takedown.bundling import Deployed, claim, settle, wanted
from spare_core.takedown.ledger import Ledger, Standing
from spare_core.takedown.request import TakedownRequest
from spare_core.takedown.standings import request_of
from spare_core.takedown.work import Told, plan_open, take_down, take_in

DAYS = {"dmca": 3.0, "gdpr": 30.0, "dsa": 7.0, "court_order": 2.0, "internal": 14.0, "other": 14.0}
FACTS = {"bundle": "spare.stub", "base": "b"}
SECONDS = 0.01
LEASE = 0.005
"""Minutes: a worker that was killed is given up after 0.3 s."""
RANK = 1000


class Champion:
    """The bundle that is deployed, as versions that are created conditionally: of two that promote at once one wins."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self) -> tuple[int, list[dict[str, Any]]]:
        """The version, and what it erases."""
        keys = self.store.list("champions")
        return (len(keys), json.loads(self.store.read(keys[-1]))) if keys else (0, [])

    def deployed(self) -> Deployed:
        """The same, as the ledger compares with it."""
        version, rows = self.read()
        parts = [
            Erasure(row["concept"], row["surrogate"], "object", (), "{concept}", (), tuple(row["aliases"]))
            for row in rows
        ]
        return Deployed("spare.stub", version or None, Erasures(*parts, bundle=True) if parts else None)

    def promote(self, instead_of: int, rows: list[dict[str, Any]]) -> bool:
        """Whether the version that the bundle was made from was champion still."""
        try:
            self.store.create(f"champions/{instead_of + 1:04d}.json", json.dumps(rows).encode())
        except ObjectExists:
            return False
        return True


def erase(standing: Standing) -> Iterator[Told]:
    """What a real erasure tells; a concept whose name begins with "fails" cannot be erased."""
    request = request_of(standing)
    if request.concept.startswith("fails"):
        raise ConceptError("the model does not know it")
    row = {"concept": request.concept, "surrogate": request.surrogate, "kind": "object", "keep": [],
           "aliases": list(request.aliases)}  # fmt: skip
    yield "erasing", {"row": row}
    time.sleep(SECONDS)
    yield "evaluated", {"ua": 1.0}
    yield "registered", {"name": "spare.stub.one", "version": 1}


def run(store: Store, worker: str, requests: list[TakedownRequest], lease: float = LEASE) -> list[str]:
    """One run to its end; the ids that it was to erase."""
    ledger = Ledger(store, worker)
    take_in(ledger, requests, "list", DAYS, skip=False)
    chosen = plan_open(ledger, worker, lambda request: "", FACTS, again=False, most=0)
    for request_id in chosen:
        take_down(Ledger(store, worker), request_id, worker, lease, erase)
    bundle(store, worker, lease)
    return chosen


def bundle(store: Store, worker: str, lease: float = LEASE) -> None:
    """The second half of a run."""
    champion, ledger = Champion(store), Ledger(store, worker)
    version, rows = champion.read()
    found = wanted(ledger, champion.deployed(), RANK)
    if (found.rows or found.without) and not claim(ledger, found.requests, worker, lease, FACTS):
        time.sleep(SECONDS)
        stay = [row for row in rows if row["concept"] not in found.without]
        champion.promote(version, [*stay, *found.rows])
    settle(Ledger(store, worker), champion.deployed(), worker, "the bundle was not promoted")


def requests_of(numbers: Iterable[int]) -> list[TakedownRequest]:
    """Requests for concepts of their own; every seventh has an alias, every tenth cannot be erased."""
    return [
        TakedownRequest.model_validate({
            "request_id": f"R-{i:05d}", "concept": f"fails {i}" if i % 10 == 0 else f"concept {i}",
            "aliases": [f"alias {i}"] if i % 7 == 0 else [], "surrogate": "Photo", "kind": "style", "regime": "dmca",
            "received_at": "2026-11-24T09:00:00Z", "requester": "case-1",
        }) for i in numbers
    ]  # fmt: skip


def in_a_process(work: Callable[[], Any]) -> int:
    """Start ``work`` in a fork; its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> int:
    """How a fork ended: negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def arm(store: Store, point: int) -> list[int]:
    """Die at the given point of the accesses to a store, 0 for never: each has one before and one after it."""
    passed = [0]

    def pass_by() -> None:
        passed[0] += 1
        if passed[0] == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(access: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            pass_by()
            try:
                return access(*given)
            finally:
                pass_by()

        return call

    for name in ("read", "create", "entries"):
        setattr(store, name, wrapped(getattr(store, name)))
    return passed


def killed(where: str, count: int, seed: int) -> dict[str, Any]:
    """The kills that happened, and the last run's number of requests; the store says the rest."""
    rng, done, points = random.Random(seed), 0, 60
    for i in range(1, 10 * count):
        requests, store = requests_of(range(1, 3 * i + 1)), open_store(where)
        arm(store, rng.randint(1, points))
        done += ended(in_a_process(partial(run, store, f"run {i}", requests))) == -signal.SIGKILL
        if done == count:
            break
    time.sleep(60 * LEASE)
    run(open_store(where), "last", requests)
    return {"killed": done, "requests": len(requests)}


if __name__ == "__main__":
    _, what, where, *numbers = sys.argv
    if what == "killed":
        print(json.dumps(killed(where, *map(int, numbers))))
    else:
        requests = requests_of(range(1, int(numbers[0]) + 1))
        # Neither dies, however long this machine lets it wait: a lease that ran out would be taken over, rightly.
        both = [in_a_process(partial(run, open_store(where), name, requests, 5.0)) for name in ("left", "right")]
        print(json.dumps([ended(one) for one in both]))
