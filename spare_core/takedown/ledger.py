"""The ledger: what became of each request, in events that can only be added.

One object an entry under ``ledger/entries/``, numbered from 1 and created conditionally, so of any number of workers
that write the same number one wins. An entry is one line of JSON; it holds one event or many, and the sha256 of the
entry before: none can be changed, left out or put in between. Every thousand entries are also kept together, byte for
byte, as ``ledger/packs/NNNN.jsonl``: years of them are read in seconds. A state follows from events alone.

========== ===========================================================================================================
state      means
========== ===========================================================================================================
received   it came in with a list; ``request`` is what the list said
planned    it will be done, with which surrogate and until when
erasing    ``worker`` is at it, until ``lease_until`` unless that is renewed; later anyone may take it over
evaluated  its own adapter was measured; ``worker`` is at it still
registered its own adapter is a version in the registry, with its evidence
in_bundle  a bundle is made with it, by ``worker`` and until ``lease_until`` as above
done       the champion does what it asks for
failed     ``reason`` says why; it may be planned again
blocked    nothing may be done to it (legal hold)
withdrawn  taken back, ``by`` says by which counter-notice
========== ===========================================================================================================
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from spare_core.errors import LedgerConflict, LedgerDamaged, ObjectExists, ObjectMissing
from spare_core.store.chain import NOTHING, Chain

if TYPE_CHECKING:
    from spare_core.store import Store

SCHEMA: Final = "spare.ledger/1"
PACK: Final = 1000
"""Entries of a pack, and of a folder."""
FOLLOWING: Final[Mapping[str, frozenset[str]]] = {
    before: frozenset(after.split())
    for before, after in {
        "": "received",
        "received": "planned blocked withdrawn failed",
        "planned": "planned erasing blocked withdrawn done failed",
        "erasing": "erasing evaluated planned failed withdrawn",
        "evaluated": "evaluated erasing registered planned failed withdrawn",
        "registered": "in_bundle failed withdrawn",
        "in_bundle": "in_bundle registered done failed withdrawn",
        "done": "in_bundle withdrawn",
        "failed": "planned blocked withdrawn",
        "blocked": "planned withdrawn",
        "withdrawn": "",
    }.items()
}
"""What may come after each state; the empty one is a request that nobody has heard of."""
HELD: Final = ("erasing", "evaluated", "in_bundle")
"""States in which a worker is at a request."""
REASON: Final = 2000
"""Characters of a reason."""
_READERS: Final = 10
_ATTEMPTS: Final = 100


class Event(NamedTuple):
    """A request enters a state; ``facts`` are plain values that are known from then on."""

    request_id: str
    state: str
    facts: Mapping[str, Any] = {}


@dataclass
class Standing:
    """Where a request stands: all facts of its events, later ones over earlier ones."""

    request_id: str
    state: str = ""
    since: str = ""
    entry: int = 0
    events: int = 0
    attempts: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def leased(self, now: datetime) -> bool:
        """Whether a worker is at it that has not been given up."""
        until: str = self.facts.get("lease_until", self.since)
        return self.state in HELD and datetime.fromisoformat(until) > now

    def knows(self, facts: Mapping[str, Any]) -> bool:
        """Whether all of ``facts`` are known of it as they are."""
        return {**self.facts, **facts} == self.facts

    def taken_from(self, worker: str) -> bool:
        """Whether that worker has no more to do with it: it was withdrawn, or another one is at it."""
        return self.state == "withdrawn" or (self.state in HELD and not self.held_by(worker))

    def held_by(self, worker: str) -> bool:
        """Whether that worker was the last one at it, and has not said how it ended."""
        return self.state in HELD and self.facts.get("worker") == worker


class Ledger:
    """The ledger in a store, read whole at construction and kept up with at each append.

    Raises:
        LedgerDamaged: naming the first entry that does not fit.
    """

    def __init__(self, store: Store, actor: str) -> None:
        self.store, self.actor = store, actor
        self.standings: dict[str, Standing] = {}
        self.hashes: list[str] = []
        """The sha256 of each entry, the first one's first."""
        self._chain = Chain(store, "the ledger", _key, LedgerDamaged)
        self._folder: list[bytes] = []
        """The lines of the folder that the last entry lies in."""
        self._lock = threading.RLock()
        """A worker's lease is renewed by a thread of its own."""
        self._read_all()

    def append(self, events: Sequence[Event]) -> None:
        """Add an entry of ``events``, of which every one must be allowed by how its request stands now.

        Raises:
            LedgerConflict: if one is not; nothing was added. Another worker may have come first: it says who.
            LedgerDamaged: if what others added meanwhile does not fit.
        """
        if not events:
            return
        with self._lock:
            self._append(events)

    def say(self, found: Callable[[], Iterable[Event]]) -> None:
        """Add what ``found`` finds there is to be said of how things stand, in entries of a readable size; it is asked
        anew where another worker came first.

        Raises:
            LedgerConflict: if that does not come to an end.
            LedgerDamaged: see :meth:`append`.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for chunk in in_chunks(found()):
                    self.append(chunk)
                return
            except LedgerConflict:
                if attempt == _ATTEMPTS:
                    raise
                self.catch_up()

    def renew(self, requests: Iterable[str], worker: str, facts: Mapping[str, Any]) -> None:
        """Enter ``facts`` of those of the requests that ``worker`` still holds, in the states in which they are.

        Raises:
            LedgerConflict: if another one took one over meanwhile.
        """
        with self._lock:  # or a step that is entered between a look at the state and this would be taken back
            held = [one for one in map(self.standing, requests) if one.held_by(worker)]
            self.append([Event(one.request_id, one.state, facts) for one in held])

    def _append(self, events: Sequence[Event]) -> None:
        while True:
            self._check(events)
            number = self.number + 1
            content = _line({
                "schema": SCHEMA, "number": number, "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "actor": self.actor, "previous_sha256": self.sha256, "nonce": uuid.uuid4().hex,
                "events": [{"request_id": one.request_id, "state": one.state, **one.facts} for one in events],
            })  # fmt: skip
            self._pack()
            if self._chain.create(number, content):
                self._take(content)
                return
            self.catch_up()

    def catch_up(self) -> None:
        """Read what others have added since."""
        with self._lock:
            while True:
                try:
                    self._take(self.store.read(_key(self.number + 1)))
                except ObjectMissing:
                    return

    @property
    def number(self) -> int:
        """Number of the last entry; 0 before the first."""
        return len(self.hashes)

    @property
    def sha256(self) -> str:
        """sha256 of the last entry."""
        return self.hashes[-1] if self.hashes else NOTHING

    @property
    def about(self) -> tuple[str, str]:
        """The registered model of the bundles that were planned last, and its base model's digest; empty before the
        first plan."""
        planned = [one for one in self.standings.values() if {"bundle", "base"} <= one.facts.keys()]
        last = max(planned, key=lambda one: one.entry, default=Standing(""))
        return last.facts.get("bundle", ""), last.facts.get("base", "")

    def check_head(self, number: int, sha256: str) -> None:
        """Compare with a head that somebody noted down: what is cut off at the end shows nowhere else.

        Raises:
            LedgerDamaged: if the ledger does not hold that entry any more.
        """
        found = self.hashes[number - 1] if 0 < number <= self.number else "gone"
        if found != sha256:
            raise LedgerDamaged(
                f"entry {number} of the ledger was {sha256[:12]}… and is {found[:12]} now; one was removed or replaced"
            )

    def check_packed(self) -> None:
        """Compare every entry that was read from a pack with its own object.

        Raises:
            LedgerDamaged: naming the first that is gone or differs.
        """
        numbers = range(1, len(self.store.list("ledger/packs")) * PACK + 1)
        with ThreadPoolExecutor(_READERS) as pool:
            for number, content in zip(numbers, pool.map(self._chain.read, numbers), strict=True):
                if hashlib.sha256(content).hexdigest() != self.hashes[number - 1]:
                    raise LedgerDamaged(f"{self._chain.where(number)} is not the one in its pack")

    def standing(self, request_id: str) -> Standing:
        """How a request stands; of one that nobody has heard of, the empty state."""
        return self.standings.get(request_id) or Standing(request_id)

    def _check(self, events: Sequence[Event]) -> None:
        now = datetime.now(UTC)
        states: dict[str, str] = {}
        for one in events:
            standing = self.standing(one.request_id)
            state = states.get(one.request_id, standing.state)
            if one.state not in FOLLOWING[state]:
                who = f" ({standing.facts['actor']}, entry {standing.entry})" if standing.entry else ""
                raise LedgerConflict(f"{one.request_id} is {state or 'unknown'}{who} and cannot become {one.state}")
            theirs = standing.leased(now) and not standing.held_by(str(one.facts.get("worker")))
            if theirs and one.state != "withdrawn":
                raise LedgerConflict(
                    f"{one.request_id} is {standing.state}: {standing.facts['worker']} is at it until "
                    f"{standing.facts['lease_until']}"
                )
            states[one.request_id] = one.state

    def _read_all(self) -> None:
        packs = sorted(self.store.list("ledger/packs"))
        with ThreadPoolExecutor(_READERS) as pool:
            for place, (key, content) in enumerate(zip(packs, pool.map(self._packed, packs), strict=True)):
                if key != _pack_key(place):
                    raise LedgerDamaged(f"{self.store.uri_of(_pack_key(place))} is missing; the next there is {key}")
                lines = content.splitlines(keepends=True)
                if len(lines) != PACK:
                    raise LedgerDamaged(f"{self.store.uri_of(key)} holds {len(lines)} entries, not {PACK}")
                for line in lines:
                    self._take(line, key)
            folder = len(packs)
            while numbers := self._chain.numbers(f"ledger/entries/{folder:04d}", folder * PACK + 1):
                for content in pool.map(self._chain.read, numbers):
                    self._take(content)
                folder += 1
                if len(numbers) < PACK:
                    self._read_end(folder)
                    return

    def _read_end(self, following: int) -> None:
        """Read on after the last folder, which was not full when it was listed: others may have gone on since, even
        into the ``following`` one. An entry that is missing while later ones are there was removed."""
        self.catch_up()
        later = self.store.list(f"ledger/entries/{following:04d}")
        if later and self.number < following * PACK:
            self.catch_up()
            if self.number < following * PACK:
                where = self._chain.where(self.number + 1)
                raise LedgerDamaged(f"{where} is missing; the next there is {later[0].rpartition('/')[2]!r}")

    def _packed(self, key: str) -> bytes:
        try:
            return self.store.read(key)
        except ObjectMissing:
            raise LedgerDamaged(f"{self.store.uri_of(key)} is gone; it was deleted while the ledger was read") from None

    def _take(self, content: bytes, pack: str = "") -> None:
        """Check the next entry, which may have been read from a ``pack``, and let its events act."""
        number = self.number + 1
        where = self._chain.where(number, pack)
        try:
            values = json.loads(content)
            fits = (values["schema"], values["number"]) == (SCHEMA, number) and content == _line(values)
            previous, events = values["previous_sha256"], values["events"]
            taken = [(event.pop("request_id"), event.pop("state"), event) for event in events]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerDamaged(f"{where} is no entry of it ({error!r}); it was overwritten") from None
        if not fits:
            raise LedgerDamaged(f"{where} says {values['schema']} {values['number']}: it is out of turn, or was edited")
        self._chain.check_follows(number, previous, self.sha256, pack)
        for request_id, state, facts in taken:
            standing = self.standings.setdefault(request_id, Standing(request_id))
            if state not in FOLLOWING[standing.state]:
                raise LedgerDamaged(f"{where} makes {request_id} {state}, which was {standing.state or 'unknown'}")
            standing.attempts += state == "erasing" and standing.state != "erasing"
            standing.state, standing.since, standing.entry = state, values["at"], number
            standing.events += 1
            standing.facts |= {**facts, "actor": values["actor"]}
        if (number - 1) % PACK == 0:
            self._folder = []
        self._folder.append(content)
        self.hashes.append(hashlib.sha256(content).hexdigest())

    def _pack(self) -> None:
        """Before the first entry of a folder, the one before is packed: the same bytes, whoever does it."""
        if self.number and self.number % PACK == 0:
            with suppress(ObjectExists):
                self.store.create(_pack_key(self.number // PACK - 1), b"".join(self._folder))


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _key(number: int) -> str:
    return f"ledger/entries/{(number - 1) // PACK:04d}/{number:08d}.json"


def _pack_key(place: int) -> str:
    return f"ledger/packs/{place:04d}.jsonl"


def in_chunks(events: Iterable[Event], size: int = 500) -> Iterator[Sequence[Event]]:
    """Many events in entries of a readable size."""
    whole = list(events)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
