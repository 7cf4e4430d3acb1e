"""What a run does about each request, as far as the ledger goes; no model is asked here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from spare_core.errors import InputError, LedgerConflict, LedgerDamaged, SpareError
from spare_core.takedown.leases import lease, renewed
from spare_core.takedown.ledger import REASON, Event, Ledger, Standing
from spare_core.takedown.planning import plan, received
from spare_core.takedown.request import TakedownRequest
from spare_core.takedown.standings import firsts, names_of, request_of

ATTEMPTS: Final = 3
"""How often a request is tried whose failure may have been the machine's, or whose worker was killed."""
_KILLED: Final = (
    "its worker was killed {} times while it was at it, and it is not tried any more: see what its task printed last "
    "(most often its memory was too small), and ask for it again with retry_failed"
)

Told = tuple[str, Mapping[str, Any]]
Erase = Callable[[Standing], Iterator[Told]]
"""Erases one request; yields the state that each step ended in, with its facts."""


class TakenIn(NamedTuple):
    """What became of a list: how many of its requests are new, and what of it was left out."""

    new: int
    left_out: list[str]


class Outcome(NamedTuple):
    """The state of a request after a worker tried it, and why."""

    state: str
    reason: str = ""


def take_in(
    ledger: Ledger, requests: Sequence[TakedownRequest], source: str, deadlines: Mapping[str, float], skip: bool
) -> TakenIn:
    """Enter a list into the ledger; what it holds already is left as it is.

    Requests that contradict others are left out if ``skip`` says so.

    Raises:
        InputError: for the contradictions, otherwise.
    """
    good, conflicts = list(requests), plan(requests, ledger, deadlines).conflicts
    if conflicts and not skip:
        raise InputError("; ".join(map(str, conflicts)))
    names = {name for conflict in conflicts for name in conflict.requests}
    good = [one for one in good if one.request_id not in names]
    new = {one.request_id for one in good if not ledger.standing(one.request_id).state}

    def events() -> list[Event]:
        # Planned anew each time another scheduler was first: it may have entered some of the requests.
        return received(plan(good, ledger, deadlines).steps, source, ledger)

    ledger.say(events)
    return TakenIn(len(new), [str(conflict) for conflict in conflicts])


def open_requests(ledger: Ledger, again: bool = False) -> list[Standing]:
    """The requests that someone has to erase now, the first due first: neither shared with another, nor at work
    elsewhere, nor failed for a reason that will not go away, unless ``again`` says that it did."""
    now = datetime.now(UTC)
    first = firsts(ledger)

    def is_open(one: Standing) -> bool:
        names = names_of(one)
        if not names or all(name in first and first[name] is not one for name in names):
            return False
        if one.state == "failed":
            return again or (bool(one.facts.get("retry")) and one.attempts < ATTEMPTS)
        return one.state in ("received", "planned") or (one.state in ("erasing", "evaluated") and not one.leased(now))

    found = [one for one in ledger.standings.values() if is_open(one)]
    return sorted(found, key=lambda one: str(one.facts["due_at"]))


MOST: Final = 300
"""Requests that one run takes: of more, Argo's workflow would not fit into the cluster's database
(tests/pipelines/test_limits.py). The others are the next run's."""


def plan_open(
    ledger: Ledger, worker: str, check: Callable[[TakedownRequest], str], facts: Mapping[str, Any], again: bool,
    most: int,
) -> list[str]:  # fmt: skip
    """Plan what is open; returns the ids, the first due first, at most ``most`` of them (0: as many as a run takes).

    What ``check`` finds wrong with a request, in words, makes it fail before any work.
    """
    chosen: list[str] = []

    def events() -> Iterable[Event]:
        chosen.clear()
        for one in open_requests(ledger, again):
            if len(chosen) == (most or MOST):
                break
            # Of one that failed its attempts are counted already, and somebody wants one more.
            killed = one.state != "failed" and one.attempts >= ATTEMPTS
            wrong = _KILLED.format(one.attempts) if killed else check(request_of(one))
            if one.state != "planned" or not one.knows(facts):
                yield Event(one.request_id, "planned", {**facts, "worker": worker, "reason": ""})
            if wrong:
                yield Event(one.request_id, "failed", {"reason": wrong[:REASON], "retry": False})
            else:
                chosen.append(one.request_id)

    if not again:
        ledger.say(lambda: _refused_already(ledger, facts))
    ledger.say(events)
    ledger.say(lambda: _waiting(ledger, facts))
    return chosen


def _refused_already(ledger: Ledger, facts: Mapping[str, Any]) -> Iterator[Event]:
    """Requests that ask for the very same as one that failed for a reason of its own share its reason: the GPU's answer
    would be the same."""
    answered = {
        _asked(one): one for one in ledger.standings.values()
        if one.state == "failed" and not one.facts.get("retry") and one.knows(facts)
    }  # fmt: skip
    for one in ledger.standings.values():
        other = answered.get(_asked(one)) if one.state in ("received", "planned") and names_of(one) else None
        if other is not None:
            reason = f"{other.request_id} asked for the same: {other.facts['reason']}"
            yield Event(one.request_id, "failed", {**facts, "reason": reason[:REASON], "retry": False})


def _asked(standing: Standing) -> tuple[Any, ...]:
    """What decides how the erasure of a request ends."""
    asked = standing.facts.get("request", {})
    parts = (asked.get("kind"), asked.get("surrogate"), *sorted(asked.get("protect", ())))
    return (frozenset(names_of(standing)), *parts)


def _waiting(ledger: Ledger, facts: Mapping[str, Any]) -> Iterator[Event]:
    """Counter-notices, and requests that share another one's erasure, are planned: they wait for the bundle."""
    erasing = {one.request_id for one in firsts(ledger).values()}
    for one in ledger.standings.values():
        if one.state == "received" and one.request_id not in erasing:
            yield Event(one.request_id, "planned", facts)


def take_down(ledger: Ledger, request_id: str, worker: str, minutes: float, erase: Erase) -> Outcome:
    """Erase one request under a lease of so many minutes, and say in the ledger how that went.

    An error of the erasure is the request's end, and nobody else's. One that another worker is at, or that was
    withdrawn, is left alone.

    Raises:
        StoreError: if the ledger cannot be written to.
        LedgerDamaged: if its chain is broken.
    """
    try:
        ledger.append([Event(request_id, "erasing", {**lease(worker, minutes), "reason": ""})])
    except LedgerConflict as error:
        return Outcome(ledger.standing(request_id).state, str(error))
    with renewed(ledger, [request_id], worker, minutes):
        try:
            for state, facts in erase(ledger.standing(request_id)):
                ledger.append([Event(request_id, state, {**facts, **lease(worker, minutes)})])
            return Outcome(ledger.standing(request_id).state)
        except LedgerConflict as error:  # withdrawn, or taken over
            return Outcome(ledger.standing(request_id).state, str(error))
        except LedgerDamaged:
            raise
        except SpareError as error:
            reason, retry = str(error), error.exit_code == 1
        except Exception as error:  # one request must not stop the others
            reason, retry = f"{type(error).__name__}: {error}", True
        try:
            ledger.append([Event(request_id, "failed", {"reason": reason[:REASON], "retry": retry, "worker": worker})])
        except LedgerConflict as error:
            reason = f"{reason}; and {error}"
    return Outcome(ledger.standing(request_id).state, reason)
