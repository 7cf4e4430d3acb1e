"""What would be done about a list, when, and why: from the list and the ledger alone, no model is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from spare_core.concepts.names import bare_name, normalise, same_concept
from spare_core.errors import SettingsError
from spare_core.store.fetching import read_yaml_mapping
from spare_core.takedown.conflicts import Conflict, circles, compare
from spare_core.takedown.ledger import Event, Ledger, Standing
from spare_core.takedown.request import AUTO, REGIMES, TakedownRequest
from spare_core.takedown.standings import firsts, names_of

DEADLINES: Final = Path(__file__).with_name("deadlines.yaml")
ENDED: Final = ("done", "withdrawn")
_NOTHING_DONE: Final = ("", "received", "planned", "blocked", "failed", "withdrawn")
_MOST_DAYS: Final = 3650

Action = Literal["erase", "share", "hold", "release", "withdraw", "nothing"]


class Step(NamedTuple):
    """What is to be done about one request: ``erase`` it, ``share`` the erasure of another one, ``hold`` it back,
    ``release`` it from that, ``withdraw`` it or what it takes back, or ``nothing``, since the ledger has it already."""

    request: TakedownRequest
    action: Action
    due_at: datetime
    reason: str

    def as_line(self) -> str:
        """One line for people."""
        request = self.request
        what = repr(request.concept) if request.concept else f"counter-notice of {request.counter_notice_of}"
        return f"{self.due_at:%Y-%m-%d %H:%M}Z  {self.action:<8}  {request.request_id}: {what}; {self.reason}"


class Plan(NamedTuple):
    """Steps by deadline, those of the same one as they are listed, and what stands in the way of all of them."""

    steps: list[Step]
    conflicts: list[Conflict]


def read_deadlines(source: str | Path = DEADLINES) -> dict[str, float]:
    """Days by regime, from a YAML file here or in S3.

    Raises:
        SettingsError: with every regime that is missing, unknown or no number of days.
    """
    values = read_yaml_mapping(source)
    unknown = [name for name in values if name not in REGIMES]
    problems = [f"{source}: unknown regime {name!r}; known: {', '.join(REGIMES)}" for name in unknown]
    for name in REGIMES:
        days = values.get(name)
        if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days <= _MOST_DAYS:
            problems.append(f"{source}: {name} is {days!r}; it must be a number of days, at most {_MOST_DAYS}")
    if problems:
        raise SettingsError(problems)
    return {name: float(values[name]) for name in REGIMES}


def due(request: TakedownRequest, deadlines: Mapping[str, float]) -> datetime:
    """Until when a request must be done, in UTC."""
    given = request.due_at or request.received_at + timedelta(days=deadlines[request.regime])
    return given.astimezone(UTC)


def plan(requests: Sequence[TakedownRequest], ledger: Ledger, deadlines: Mapping[str, float]) -> Plan:
    """What is to be done about the requests of a list, given what the ledger knows."""
    compared = compare(requests)
    standing = firsts(ledger)
    conflicts = [*compared.conflicts, *_against(requests, ledger, standing)]
    steps = []
    for request in {one.request_id: one for one in requests}.values():
        action, reason = _step(request, ledger, compared.repeated, compared.withdrawn, standing)
        steps.append(Step(request, action, due(request, deadlines), reason))
    return Plan(sorted(steps, key=lambda one: one.due_at), conflicts)


def _step(
    request: TakedownRequest,
    ledger: Ledger,
    repeated: Mapping[str, str],
    withdrawn: Mapping[str, str],
    standing: Mapping[str, Standing],
) -> tuple[Action, str]:
    now = ledger.standing(request.request_id)
    if now.state and not _hold_changed(request, now):
        return "nothing", f"it is {now.state} since {now.since}"
    if now.state == "blocked":
        return "release", "the legal hold is lifted"
    if request.counter_notice_of:
        target = ledger.standing(request.counter_notice_of)
        return "withdraw", f"takes back {request.counter_notice_of}, which is {target.state or 'in the same list'}"
    if by := withdrawn.get(request.request_id):
        return "withdraw", f"taken back by {by}, before anything was done"
    if request.legal_hold:
        return "hold", "legal hold: nothing may be done to it"
    if first := repeated.get(request.request_id):
        return "share", f"asks for the same as {first}"
    if other := standing.get(normalise(request.concept)):
        return "share", f"asks for the same as {other.request_id}, which is {other.state}"
    surrogate = "a surrogate that the planner chooses" if request.surrogate == AUTO else repr(request.surrogate)
    return "erase", f"becomes {surrogate}"


def received(steps: Iterable[Step], source: str, ledger: Ledger) -> list[Event]:
    """The events that take a plan's new requests into the ledger. A counter-notice ends what it takes back, and is done
    itself where nothing had been erased yet; else the next bundle is made without it."""
    events: list[Event] = []
    for step in steps:
        request = step.request
        if step.action == "nothing":
            continue
        facts: dict[str, Any] = {
            "request": _as_said(request), "list": source,
            "due_at": step.due_at.isoformat(), "reason": step.reason,
        }  # fmt: skip
        if step.action == "release":
            events.append(Event(request.request_id, "planned", facts))
            continue
        if not ledger.standing(request.request_id).state:
            events.append(Event(request.request_id, "received", facts))
        if step.action == "hold":
            events.append(Event(request.request_id, "blocked", {"reason": step.reason, "request": facts["request"]}))
    for step in steps:
        target = step.request.counter_notice_of
        if step.action == "withdraw" and target:
            before = ledger.standing(target).state
            if before != "withdrawn":
                events.append(Event(target, "withdrawn", {"by": step.request.request_id}))
            if before in _NOTHING_DONE:
                events += [Event(step.request.request_id, state) for state in ("planned", "done")]
    return events


def _against(requests: Sequence[TakedownRequest], ledger: Ledger, standing: Mapping[str, Standing]) -> list[Conflict]:
    """What the list says otherwise than the ledger has it; ``standing`` is what is erased there, by name."""
    found = []
    listed = {one.request_id for one in requests}
    known = {one.request_id: one for one in standing.values()}
    protecting = {
        bare_name(name): one for one in known.values() for name in one.facts["request"].get("protect", ())
    }  # fmt: skip
    erased = {bare_name(name): one for name, one in standing.items()}
    for one in requests:
        if (before := ledger.standing(one.request_id)).state:
            found += _changed(one, before)
            continue
        others = {standing[name].request_id: standing[name] for name in map(normalise, one.names) if name in standing}
        for other in others.values():
            theirs = other.facts["request"].get("surrogate", AUTO)
            if not {*map(normalise, one.names)} <= {*names_of(other)}:
                reason = (
                    f"{other.request_id} erases a part of its names already; put the rest into a request of its own"
                )
                found.append(Conflict((one.request_id,), reason))
            elif AUTO not in (theirs, one.surrogate) and not same_concept(theirs, one.surrogate):
                reason = f"{other.request_id} erases it already, as {theirs!r}; take that back first, or agree with it"
                found.append(Conflict((one.request_id,), reason))
        for name in one.protect:
            if erasing := erased.get(bare_name(name)):
                reason = f"it protects {name!r}, which {erasing.request_id} erases already; leave it out, or ask them"
                found.append(Conflict((one.request_id,), reason))
        for name in one.names:
            if kept := protecting.get(bare_name(name)):
                reason = f"{name!r} is protected by {kept.request_id}, which is {kept.state}; take that back first"
                found.append(Conflict((one.request_id,), reason))
        target = one.counter_notice_of
        if target and target not in listed and not ledger.standing(target).state:
            found.append(Conflict((one.request_id,), f"takes back {target!r}, which neither list nor ledger has"))
    new = [one for one in requests if not ledger.standing(one.request_id).state]
    rings = circles([*new, *map(_as_erased, known.values())])
    return [*found, *(ring for ring in rings if not {*ring.requests} <= known.keys())]


def _changed(one: TakedownRequest, before: Standing) -> list[Conflict]:
    """A request stays what it was, but for a legal hold that comes before any work, or goes."""
    said, known = _as_said(one), before.facts["request"]
    if said == known or _hold_changed(one, before):
        return []
    if {**said, "legal_hold": None} == {**known, "legal_hold": None}:
        reason = f"it is {before.state}: a legal hold comes too late; take it back by a counter-notice"
    else:
        reason = f"the ledger has another request of that id, entry {before.entry}; give this one its own"
    return [Conflict((one.request_id,), reason)]


def _hold_changed(one: TakedownRequest, before: Standing) -> bool:
    """Whether a legal hold, and nothing else, was set or lifted in time."""
    said, known = _as_said(one), before.facts["request"]
    same = {**said, "legal_hold": None} == {**known, "legal_hold": None}
    in_time = before.state in (("received", "planned", "failed") if one.legal_hold else ("blocked",))
    return said != known and same and in_time


def _as_said(one: TakedownRequest) -> dict[str, Any]:
    """A request's fields for the ledger, from which nothing can be removed: without what people write to each other."""
    return one.model_dump(mode="json", exclude_defaults=True, exclude={"notes"})


def _as_erased(standing: Standing) -> TakedownRequest:
    """A request with the surrogate that was chosen for it, if one was."""
    chosen = standing.facts.get("row", {}).get("surrogate")
    request = TakedownRequest.model_validate(standing.facts["request"])
    return request.model_copy(update={"surrogate": chosen}) if chosen else request


def overview(ledger: Ledger, now: datetime, soon: timedelta) -> list[dict[str, Any]]:
    """Every request by deadline: state, since when, and whether it is ``late`` or about to be (``soon``)."""
    rows = []
    for one in ledger.standings.values():
        due_at = datetime.fromisoformat(one.facts["due_at"])
        open_ = one.state not in ENDED
        rows.append({
            "request_id": one.request_id, "concept": one.facts["request"].get("concept", ""), "state": one.state,
            "since": one.since, "due_at": one.facts["due_at"], "late": open_ and due_at < now,
            "soon": open_ and now <= due_at < now + soon, "attempts": one.attempts, "entry": one.entry,
            "reason": one.facts.get("reason", ""),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["due_at"], row["request_id"]))
