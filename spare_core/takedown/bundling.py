"""From many requests to one bundle: what it must erase besides what the champion does, and what became of them then.

A bundle that the gate refuses holds up all that would join it, so the one that spoils it is looked for
(:func:`refuse`): it fails, with the reason, and the rest goes on without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from spare_core.concepts.erasures import Erasures
from spare_core.concepts.names import normalise, same_concept
from spare_core.errors import GateRefused, LedgerConflict
from spare_core.takedown.leases import lease
from spare_core.takedown.ledger import REASON, Event, Ledger, Standing
from spare_core.takedown.standings import MADE, active, firsts, names_of, request_of, withdrawn_names

_AMONG: Final = "refused_among"
"""Fact of a request: how many joined the last bundle with it that was refused for who knows which of them."""
_GENTLER: Final = "refused_for_harm"
"""Fact of a request: a bundle with it was refused for nothing but what it did to what is kept."""


class Wanted(NamedTuple):
    """How the next bundle differs from the champion: ``rows`` join it (:data:`spare_core.runs.request.ROW`), the
    concepts in ``without`` leave it. ``requests`` are those that are done once it is champion; those in ``no_room``
    have to wait for a bundle of a higher rank, those in ``next_time`` for a later run: a bundle with all of them was
    refused. ``gentler``: one was refused for the harm that it did, so in this one drift costs more. ``names``: how many
    names all of these have."""

    rows: list[dict[str, Any]]
    without: list[str]
    requests: list[str]
    no_room: list[str]
    next_time: list[str]
    gentler: bool = False
    names: int = 0


class Deployed(NamedTuple):
    """The bundle that is deployed: its registered model, its version, and what it erases; None and nothing where there
    is none."""

    name: str
    version: int | None
    erasures: Erasures | None

    @property
    def names(self) -> set[str]:
        """All that it erases, normalised."""
        return {normalise(name) for part in self.erasures or () for name in part.names}


def wanted(ledger: Ledger, champion: Deployed, rank: float) -> Wanted:
    """What the ledger asks of the next bundle, which has room for as many names as its ``rank``: the first due go
    first. What the champion erases without the ledger's knowing stays."""
    first, gone = firsts(ledger), withdrawn_names(ledger)
    kept = {normalise(name): part for part in champion.erasures or () for name in part.names}
    found = Wanted([], [], [], [], [])
    for part in champion.erasures or ():
        names = {*map(normalise, part.names)}
        if names & gone and not names & first.keys():
            found.without.append(part.concept)
    waiting = sum(len(part.names) for part in champion.erasures or () if part.concept not in found.without)
    room = rank - waiting
    made = [one for one in active(ledger) if one.state in MADE]
    refused = [one.facts[_AMONG] for one in made if one.state == "registered" and _AMONG in one.facts]
    most = min(refused) // 2 if refused else math.inf
    for one in sorted(made, key=lambda one: str(one.facts["due_at"])):
        names = {*names_of(one)}
        row = _row(one, ledger)
        if row is None or not any(first[name] is one for name in names):
            continue
        parts = list({part.concept: part for name, part in kept.items() if name in names}.values())
        there = len(parts) == 1 and {*map(normalise, parts[0].names)} == names
        if there and same_concept(parts[0].surrogate, row["surrogate"]):
            continue
        needed = len(names) - sum(len(part.names) for part in parts)
        waiting += needed
        if len(found.requests) >= most:
            found.next_time.append(one.request_id)
            continue
        if needed > room:
            found.no_room.append(one.request_id)
            continue
        room -= needed
        found.rows.append(row)
        found.without.extend(part.concept for part in parts if part.concept not in found.without)
        found.requests.append(one.request_id)
    erased = {normalise(name) for row in found.rows for name in (row["concept"], *row["aliases"])} | kept.keys()
    for row in found.rows:
        row["keep"] = [name for name in row["keep"] if normalise(name) not in erased]
    return found._replace(gentler=any(one.facts.get(_GENTLER) for one in made), names=waiting)


def _row(one: Standing, ledger: Ledger) -> dict[str, Any] | None:
    """How a request was erased; of one that shares the erasure of another, perhaps withdrawn since, how that was."""
    if "row" in one.facts:
        return {**one.facts["row"]}
    names, request = {*names_of(one)}, request_of(one)
    for other in ledger.standings.values():
        if "row" in other.facts and names <= {*names_of(other)}:
            return {**other.facts["row"], "concept": request.concept, "aliases": list(request.aliases)}
    return None


def claim(ledger: Ledger, requests: list[str], worker: str, minutes: float, facts: Mapping[str, Any]) -> str:
    """Enter that ``worker`` makes a bundle of ``requests``; in words who makes one already, if somebody does."""
    held = {**facts, **lease(worker, minutes), "reason": ""}
    try:
        ledger.append([Event(request_id, "in_bundle", held) for request_id in requests])
    except LedgerConflict as error:
        return str(error)
    return ""


def refuse(ledger: Ledger, worker: str, error: GateRefused) -> None:
    """Enter what the gate's refusal of ``worker``'s bundle means for each request in it.

    Where only what is kept was harmed, the next bundle is made of the same requests with a higher price of drift: a
    long list's erasure is a choice between two harms. Requests whose own concepts are not forgotten in it fail, if they
    are at most half of all that joined. Where they are more, or what is kept was harmed again, or a concept came back
    that was gone, nobody knows by whom: then the next bundle takes half as many, and so on, until the last one alone is
    who spoils it.
    """
    ledger.say(lambda: _refused(ledger, worker, error))


def _refused(ledger: Ledger, worker: str, error: GateRefused) -> Iterator[Event]:
    joined = [one for one in ledger.standings.values() if one.state == "in_bundle" and one.held_by(worker)]
    named = {normalise(concept) for concept in error.concepts}
    spoiling = joined if len(joined) == 1 else [one for one in joined if named & {*names_of(one)}]
    known = len(joined) == 1 or 0 < 2 * len(spoiling) <= len(joined)
    others = ", ".join(one.request_id for one in spoiling)
    gentler = error.harm and not any(one.facts.get(_GENTLER) for one in joined)
    for one in joined:
        facts: dict[str, Any] = {"worker": worker}
        if gentler:
            state, facts[_GENTLER] = "registered", True
            reason = f"a bundle with it was refused for what it does to the rest; the next is gentler: {error}"
        elif known and one in spoiling:
            state, facts["retry"] = "failed", False
            reason = f"the bundle with it is refused: {error}"
        elif known:
            state, reason = "registered", f"the bundle was refused for {others}; the next is without"
        else:
            state, facts[_AMONG] = "registered", len(joined)
            reason = f"a bundle of {len(joined)} requests was refused, the next one takes half as many: {error}"
        yield Event(one.request_id, state, {**facts, "reason": reason[:REASON]})


def settle(ledger: Ledger, champion: Deployed, worker: str, why: str) -> None:
    """Enter what has come true: requests are done whose names the champion erases, counter-notices whose names it does
    not; what ``worker``, which has ended, was still at is for the next run: a bundle, for the reason ``why``, or
    requests whose task was killed."""
    ledger.say(lambda: _settled(ledger, champion, worker, why))


def _settled(ledger: Ledger, champion: Deployed, worker: str, why: str) -> Iterator[Event]:
    facts = {"bundle": champion.name, "version": champion.version, "reason": ""}
    ways = {
        "received": ("planned", "done"), "planned": ("done",), "failed": ("planned", "done"),
        "registered": ("in_bundle", "done"), "in_bundle": ("done",),
    }  # fmt: skip
    asked = firsts(ledger).keys()
    for one in list(ledger.standings.values()):
        names = {*names_of(one)}
        if one.state in ways and names and names <= champion.names and _may(one, worker) and _row(one, ledger):
            yield from (Event(one.request_id, state, {**facts, "worker": worker}) for state in ways[one.state])
        elif one.state in ("received", "planned") and not names:
            target = {*names_of(ledger.standing(str(one.facts["request"]["counter_notice_of"])))}
            if not (target - asked) & champion.names:
                yield from (Event(one.request_id, state, facts) for state in ways[one.state])
        elif one.held_by(worker):
            after = (
                ("registered", why) if one.state == "in_bundle" else ("planned", "its task ended before it was done")
            )
            yield Event(one.request_id, after[0], {"worker": worker, "reason": after[1]})


def _may(one: Standing, worker: str) -> bool:
    """Another run's bundle is for that run to end."""
    return one.state != "in_bundle" or one.held_by(worker) or not one.leased(datetime.now(UTC))
