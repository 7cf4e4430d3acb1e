"""What each task of the batch pipeline does; see :mod:`spare_core.workflow.tasks`, whose tasks make and promote the
bundle.

::

    plan ─> take_down (one a request) ─> gather ─> compose ─> evaluate ─> register ─> gate ─> promote
    └──────────────────── close: the exit handler, which enters what has come true ─────────────────┘
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from spare_core.concepts.erasures import Erasures
from spare_core.errors import InputError, SettingsError
from spare_core.registry.ledger_head import remember_head
from spare_core.registry.tracking import stage_run
from spare_core.store import Store
from spare_core.takedown import work
from spare_core.takedown.apart import enter_death, memory_bound, run_apart
from spare_core.takedown.bundling import Deployed, claim, settle, wanted
from spare_core.takedown.doubts import doubts
from spare_core.takedown.leases import check_clock
from spare_core.takedown.ledger import Ledger
from spare_core.takedown.parameters import Batch, check_batch
from spare_core.takedown.planning import DEADLINES, read_deadlines
from spare_core.takedown.reading import read_lists
from spare_core.takedown.times import read_zone
from spare_core.workflow.ending import end_runs
from spare_core.workflow.environment import STORE, open_run_store, pipeline_run_id, run_actor
from spare_core.workflow.order import Champion, check_order
from spare_core.workflow.services import task_of
from spare_core.workflow.tasks import champion_of
from spare_core.workflow.travelling import expansion_problems, receive, send


class Planned(NamedTuple):
    """What the later tasks work on: the batch, as a key, and the ids of the requests to erase, the first due first."""

    batch: str
    requests: list[str]


class Gathered(NamedTuple):
    """The order of a bundle and the policy for it, as keys; ``needed`` says whether there is one to make."""

    order: str
    policy: str
    needed: bool


def plan_task(parameters: Mapping[str, Any]) -> Planned:
    """Check everything, take the lists into the ledger, and say what has to be erased; no GPU is needed.

    Raises:
        SettingsError: with everything that is wrong with the parameters.
        InputError: for bad rows and contradictions, unless they are to be skipped.
        RegistryError, StoreError: if MLflow or the store cannot be used.
    """
    with task_of("plan") as results:
        store = open_run_store()
        store.check_create()
        if wrong := expansion_problems(parameters):
            raise SettingsError(wrong)
        batch = check_batch(parameters)
        check_clock(store, batch.lease_minutes)
        deadlines = read_deadlines(parameters["deadlines"] or DEADLINES)
        ledger = _ledger(store)
        _check_same_model(ledger, batch)
        skip = parameters["skip_invalid"]
        requests, left_out, remarks = [], [], []
        zone = read_zone(parameters["zone"])
        for found in read_lists(parameters["requested"], zone) if parameters["requested"] else ():
            requests += [row.request for row in found.rows]
            left_out += [str(problem) for problem in found.problems]
            remarks += [str(doubt) for doubt in doubts(found, datetime.now(UTC))]
        if left_out and not skip:
            raise InputError("; ".join(left_out))
        with stage_run(f"takedowns of {batch.name}", "plan", pipeline_run_id()) as run:
            run.params({name: value for name, value in parameters.items() if value not in ("", [], {})})
            taken = work.take_in(ledger, requests, parameters["requested"], deadlines, skip)
            again, most = parameters["retry_failed"], int(parameters["most"])
            chosen = work.plan_open(ledger, pipeline_run_id(), batch.wrong_with, batch.about(), again, most)
        waiting = sum(one.request_id not in chosen for one in work.open_requests(ledger))
        results |= {
            "requests": chosen, "new": taken.new, "left_out": [*left_out, *taken.left_out], "remarks": remarks,
            "waiting": waiting,
        }  # fmt: skip
        if waiting:
            print(f"{waiting} more are open: the next run's, this one takes {len(chosen)}", flush=True)
        for line in results["left_out"]:
            print(f"left out: {line}", flush=True)
        for line in remarks:
            print(f"look again: {line}", flush=True)
        return Planned(send(store, batch.to_json()), chosen)


def take_down_task(batch: str, request_id: str) -> str:
    """Erase, measure and register one request; returns the state it is in then. Its failure is entered in the ledger
    and stops nobody else, even where it is the death of the process that works on it.

    Raises:
        InputError: if this machine's clock is wrong.
        StoreError, LedgerDamaged: if the ledger cannot be used.
    """
    with task_of(f"take down {request_id}") as results:
        store = open_run_store()
        check_clock(store, Batch.from_json(receive(store, batch)).lease_minutes)
        command = [sys.executable, "-P", "-m", "spare_core.takedown.alone", batch, request_id]
        ended = run_apart(command, memory_bound())
        ledger = _ledger(store)
        if ended:
            enter_death(ledger, request_id, pipeline_run_id(), ended)
        standing = ledger.standing(request_id)
        results |= {"state": standing.state, "reason": standing.facts.get("reason", "")}
        return standing.state


def gather_task(batch: str) -> Gathered:
    """The bundle that the ledger asks for, if it is another than the champion and nobody is making it.

    Raises:
        SettingsError: if it cannot be made so.
        InputError: if nothing would be left in it.
    """
    with task_of("gather") as results:
        store = open_run_store()
        asked = Batch.from_json(receive(store, batch))
        check_clock(store, asked.lease_minutes)
        ledger, champion = _ledger(store), champion_of(asked.name, asked.base, store)
        rank = champion.manifest["settings"]["rank"] if champion else asked.bundle_settings.get("rank", "auto")
        found = wanted(ledger, _deployed(asked.name, champion), math.inf if rank == "auto" else rank)
        for request_id in found.no_room:
            print(f"{request_id} has no room in a bundle of rank {rank}; make one of a higher rank under another name")
        if found.next_time:
            print(f"{', '.join(found.next_time)}: with all of them a bundle was refused; this one is of fewer")
        results |= found._asdict()
        if not (found.rows or found.without):
            return Gathered("", "", False)
        if champion and not found.rows and len(found.without) == len(Erasures.of(champion.manifest)):
            raise InputError(
                "the last request was withdrawn, and there is no bundle of nothing: delete the alias champion of "
                f"{asked.name}, serve the base model, and run this again"
            )
        room = 0 if champion else found.names
        parameters = asked.bundle_parameters(found.rows, found.without, found.gentler, room)
        order, _ = check_order(parameters, (), lambda base: champion)
        busy = claim(ledger, found.requests, pipeline_run_id(), asked.lease_minutes, asked.about())
        if busy:
            results["busy"] = busy
            print(f"a bundle is being made elsewhere: {busy}", flush=True)
            return Gathered("", "", False)
        held = dataclasses.replace(order, held=tuple(found.requests), lease_minutes=asked.lease_minutes)
        order = held.judged_by(asked.bundle_policy)
        return Gathered(send(store, order.to_json()), send(store, asked.bundle_policy.to_json()), True)


def close_task(state: str, message: str) -> dict[str, Any]:
    """Enter in the ledger what has come true, and let go of what this run was still at. ``state`` and ``message`` are
    KFP's."""
    with task_of("close") as results:
        ended, store = end_runs(state, message), open_run_store()
        ledger = _ledger(store)
        # What went wrong in a request's own stages, its standing says.
        wrong = [
            f"{stage}: {error}" for request_id, stages in ended.items() if not ledger.standing(request_id).state
            for stage, error in stages.items()
        ]  # fmt: skip
        why = "; ".join(wrong) or message or "the bundle was not promoted"
        name, base = ledger.about
        deployed = _deployed(name, champion_of(name, base, store) if name else None)
        settle(ledger, deployed, pipeline_run_id(), why)
        if name:
            remember_head(name, ledger.number, ledger.sha256)
        states = dict(Counter(one.state for one in ledger.standings.values()))
        results |= {"state": state, "states": states, "head": f"{ledger.number}:{ledger.sha256}"}
        return dict(results)


def _ledger(store: Store) -> Ledger:
    return Ledger(store, run_actor())


def _deployed(name: str, champion: Champion | None) -> Deployed:
    return Deployed(name, champion.version, Erasures.of(champion.manifest)) if champion else Deployed(name, None, None)


def _check_same_model(ledger: Ledger, batch: Batch) -> None:
    """Check that the ledger is about the batch's model: a ledger records what one deployed model no longer draws.

    Raises:
        InputError: if it is about another one.
    """
    name, base = ledger.about
    if base not in ("", batch.base):
        raise InputError(
            f"this ledger is about {name}, of the base model {base[:12]}…, and {batch.model!r} is {batch.base[:12]}…; "
            f"give another {STORE}"
        )
