"""The promotion log: every move of an alias, for ever (MLflow keeps no history of aliases).

One object an entry under ``promotions/<model name>/``, numbered from 1 and created conditionally, so of two that write
the same number one wins. Each entry holds the sha256 of the one before: none can be changed, left out or put in
between. What is cut off at the end is seen by comparing with the head that MLflow's registered model remembers.

========= ============================================================================================================
kind      means
========= ============================================================================================================
promote   the champion is about to become ``after.champion``; what was champion, ``after.previous``
rollback  champion and previous are about to change places
finish    entry ``of`` is done (``moved``), or can no more be done (``abandoned``); ``after``: how the aliases are
outside   somebody moved an alias past SPARE; found and recorded, not undone
========= ============================================================================================================

Only ``finish`` may follow a ``promote`` or ``rollback``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from spare_core.errors import LogDamaged, PromotionConflict
from spare_core.registry.naming import check_name
from spare_core.store.chain import NOTHING, Chain

if TYPE_CHECKING:
    from spare_core.store import Store

SCHEMA: Final = "spare.promotion/1"
_READERS: Final = 10

Kind = Literal["promote", "rollback", "finish", "outside"]
_MOVES: Final = ("promote", "rollback")
_KINDS: Final = (*_MOVES, "finish", "outside")


@dataclass(frozen=True)
class Aliases:
    """Versions that the aliases point to; None where there is no alias."""

    champion: int | None = None
    previous: int | None = None

    def __post_init__(self) -> None:
        if not all(version is None or type(version) is int for version in (self.champion, self.previous)):
            raise ValueError(f"versions are numbers, got {self.champion!r} and {self.previous!r}")

    def __str__(self) -> str:
        return f"champion {self.champion or '–'}, previous {self.previous or '–'}"


@dataclass(frozen=True)
class Entry:
    """One object of the log; ``sha256`` is that of its bytes and is not part of them.

    A move names the policy it was made under, and the document in the store (``evidence/<verdict_sha256>.json``) that
    says what the gate found, and in what evidence.
    """

    number: int
    kind: Kind
    model: str
    at: str
    actor: str
    before: Aliases
    after: Aliases
    previous_sha256: str
    reason: str = ""
    forced: bool = False
    of: int | None = None
    outcome: str = ""
    adapter_sha256: str = ""
    request_id: str = ""
    policy_sha256: str = ""
    verdict_sha256: str = ""
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    sha256: str = ""

    @property
    def is_move(self) -> bool:
        """Whether it announces a move that a further entry must finish."""
        return self.kind in _MOVES

    def as_line(self) -> str:
        """One line for people."""
        what = {
            "promote": f"promote version {self.after.champion}{' BY FORCE' if self.forced else ''}",
            "rollback": f"roll back to version {self.after.champion}",
            "finish": f"finish entry {self.of}, {self.outcome}",
            "outside": "moved outside SPARE",
        }[self.kind]
        reason = f"; {self.reason}" if self.reason else ""
        return f"{self.number:>4}  {self.at}  {self.actor}: {what} ({self.before} -> {self.after}){reason}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ``sha256`` included."""
        return dataclasses.asdict(self)

    def content(self) -> bytes:
        """The object's bytes."""
        values = {"schema": SCHEMA, **self.as_dict()}
        del values["sha256"]
        return (json.dumps(values, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


class PromotionLog:
    """The log of one registered model in a store."""

    def __init__(self, store: Store, model: str) -> None:
        self.store, self.model = store, check_name(model)
        self._folder = f"promotions/{model}/"
        self._chain = Chain(store, "the promotion log", self._key, LogDamaged)

    def read(self, known: tuple[Entry, ...] = ()) -> tuple[Entry, ...]:
        """All entries, checked; those that are ``known`` from an earlier call are not read once more.

        Raises:
            LogDamaged: naming the first entry that does not fit.
        """
        entries = list(known)
        numbers = self._chain.numbers(self._folder)
        if len(numbers) < len(known):
            raise LogDamaged(f"{self._chain.where(len(known))} was there a moment ago, and is gone")
        new = numbers[len(known) :]
        with ThreadPoolExecutor(_READERS) as pool:  # one request an entry, for years of promotions
            for number, content in zip(new, pool.map(self._chain.read, new), strict=True):
                entries.append(self._checked(content, number, entries[-1] if entries else None))
        return tuple(entries)

    def append(self, last: Entry | None, kind: Kind, actor: str, before: Aliases, after: Aliases, **more: Any) -> Entry:
        """Create the entry after ``last``.

        Raises:
            PromotionConflict: if another one took its number; it says which.
        """
        number = 1 if last is None else last.number + 1
        at = datetime.now(UTC).isoformat(timespec="seconds")
        previous = NOTHING if last is None else last.sha256
        entry = Entry(number, kind, self.model, at, actor, before, after, previous, **more)
        content = entry.content()
        if not self._chain.create(number, content):
            won = self.read()[number - 1]
            raise PromotionConflict(
                f"another one came first and wrote entry {number} of {self.model}: {won.as_line().strip()}. Look at "
                f"`spare registry show {self.model}`, then try again"
            )
        return dataclasses.replace(entry, sha256=hashlib.sha256(content).hexdigest())

    def _checked(self, content: bytes, number: int, before: Entry | None) -> Entry:
        try:
            values = json.loads(content)
            schema = values.pop("schema")
            values |= {side: Aliases(**values[side]) for side in ("before", "after")}
            entry = Entry(**values, sha256=hashlib.sha256(content).hexdigest())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LogDamaged(
                f"{self._chain.where(number)} is no entry of the log ({error}); it was overwritten"
            ) from None
        self._chain.check_follows(number, entry.previous_sha256, NOTHING if before is None else before.sha256)
        of = number - 1 if before is not None and before.is_move else None
        fits = entry.kind in _KINDS and (entry.kind == "finish") == (of is not None) and entry.of == of
        if (schema, entry.number, entry.model) != (SCHEMA, number, self.model) or not fits:
            raise LogDamaged(
                f"{self._chain.where(number)} says {schema} {entry.model} {entry.number} {entry.kind}: out of turn"
            )
        return entry

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:08d}.json"


def made_champion(entries: tuple[Entry, ...], version: int) -> Entry | None:
    """The move that made a version champion and still holds; None if the log has none.

    While a further move is announced and not finished, the alias may be here or there: both are as the log says.
    """
    moves: list[Entry] = []
    for entry in entries:
        if entry.kind != "finish":
            moves.append(entry)
        elif entry.outcome == "abandoned":
            moves.pop()
    holding = moves[-2:] if entries and entries[-1].is_move else moves[-1:]
    return next((move for move in holding if move.is_move and move.after.champion == version), None)


def aliases_after(entries: tuple[Entry, ...]) -> Aliases:
    """How the aliases stand according to the log; an unfinished move counts as done, as it will be."""
    return entries[-1].after if entries else Aliases()
