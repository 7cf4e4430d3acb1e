"""Moving the aliases ``champion`` and ``previous``: past the gate only, and never without an entry in the log.

The gate is asked at every move, of the policy that holds then and the evidence in the store, not of what a tag says.

A move is announced in the log, then made in MLflow, then finished in the log. A process that dies in between leaves an
announcement; whoever comes next waits a moment, then finishes it first, which is safe to do twice. MLflow moves aliases
unconditionally, so the log decides who was first: of two that announce at once one fails. One whose move was finished
by somebody else may have written aliases late; it looks at the log again and, if that has gone on, restores what the
log says.

An alias that somebody moved in MLflow's own pages is a fact: it is recorded as such, and the move goes on from there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from spare_core.errors import LogDamaged, PromotionConflict, RegistryInputError
from spare_core.registry.client import asking, connect, overwrite
from spare_core.registry.log import Aliases, Entry, Kind, PromotionLog, aliases_after, made_champion
from spare_core.registry.models import (
    FORCED,
    FORCED_REASON,
    RegisteredVersion,
    check_weights,
    get_version,
    judge,
)
from spare_core.registry.naming import check_name
from spare_core.registry.tracking import REQUEST

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from spare_core.evaluation.gate import Policy
    from spare_core.store import Store

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
ANY: Final = -1
"""Any champion, or none."""
_HEAD: Final = "spare.promotions.head"
"""Tag of the registered model: number and sha256 of the last finished entry."""
_WORDS: Final = 2000
_PATIENCE_SECONDS: Final = 1.5
"""How long an announced move may go on before it is taken for a dead process's."""


@dataclass(frozen=True)
class Move:
    """What became of a promotion or rollback; ``entry`` is its number in the log, None if nothing had to be moved."""

    name: str
    kind: Kind
    aliases: Aliases
    entry: int | None
    forced: bool
    notes: tuple[str, ...]

    @property
    def moved(self) -> bool:
        """Whether anything was moved."""
        return self.entry is not None


def promote(
    name: str, version: int, store: Store, actor: str, policy: Policy, reason: str = "", force: bool = False,
    instead_of: int | None = ANY,
) -> Move:  # fmt: skip
    """Make a version champion; the champion until now becomes ``previous``.

    With ``instead_of``, only if that one is champion still (None: if there is none): a bundle that was made from an
    older champion would take back what has been erased since.

    ``force`` passes over the gate's refusal. It needs a reason, and the version is marked with it for ever. It passes
    over nothing else: files that are not what was registered are refused all the same.

    Raises:
        GateRefused: if the version's evidence does not meet ``policy``.
        PromotionConflict: if another move came first; nothing was moved.
        RegistryInputError: if there is no such version of ours, or a forced promotion has no reason.
        RegistryError: if its evidence or its files are not those that were registered.
        LogDamaged: if the promotion log is not whole.
    """
    _check_words(actor, reason, force)
    desk = _Desk(connect(), store, name)
    desk.finish_pending(actor)
    permit = _ask(desk, version, policy, force)
    now = desk.observe(actor)
    moved_by_us = made_champion(desk.entries, version) is not None
    if now.champion == version and moved_by_us and (not permit.forced or permit.version.tags.get(FORCED) == "true"):
        return desk.outcome("promote", now, None, note=f"version {version} is champion already")
    if instead_of != ANY and now.champion not in (instead_of, version):
        raise PromotionConflict(
            f"version {version} of {name} was made when version {instead_of or '–'} was champion; it is version "
            f"{now.champion or '–'} now. Make the bundle again from that one"
        )
    previous = now.champion if now.champion not in (None, version) else now.previous
    after = Aliases(version, None if previous == version else previous)
    return desk.move("promote", actor, reason, permit, after)


def rollback(name: str, store: Store, actor: str, policy: Policy, reason: str = "", force: bool = False) -> Move:
    """Let ``champion`` and ``previous`` change places.

    Raises:
        RegistryInputError: if there is no previous version.
        GateRefused, PromotionConflict, RegistryError, LogDamaged: see :func:`promote`.
    """
    _check_words(actor, reason, force)
    desk = _Desk(connect(), store, name)
    desk.finish_pending(actor)
    now = desk.observe(actor)
    if now.previous is None:
        raise RegistryInputError(f"{name} has no previous version to go back to, see `spare registry show`")
    permit = _ask(desk, now.previous, policy, force)
    return desk.move("rollback", actor, reason, permit, Aliases(now.previous, now.champion))


class _Permit(NamedTuple):
    """A version that may become champion, and what the gate said of it."""

    version: RegisteredVersion
    forced: bool
    policy_sha256: str
    verdict_sha256: str


def _ask(desk: _Desk, version: int, policy: Policy, force: bool) -> _Permit:
    """The gate's permit for a version whose files are what was registered."""
    found = get_version(desk.client, desk.name, version)
    verdict, sha256 = judge(found, desk.store, policy)
    if not verdict.passed and not force:
        raise verdict.refused(
            f"version {version} of {desk.name} cannot become champion, the gate refuses it",
            ". Promote another, or force this one with --force and a reason",
        )
    check_weights(desk.client, found)
    return _Permit(found, not verdict.passed, policy.sha256, sha256)


def read_log(client: MlflowClient, store: Store, name: str, known: tuple[Entry, ...] = ()) -> tuple[Entry, ...]:
    """The promotion log of a registered model, checked as a whole; what is ``known`` of it is not read once more.

    Raises:
        LogDamaged: if an entry does not fit the one before it, or the log ends before what MLflow remembers of it.
    """
    with asking(f"show as {check_name(name)}"):
        head = client.get_registered_model(name).tags.get(_HEAD, "")  # before the log, which only grows
    entries = PromotionLog(store, name).read(known)
    number, _, sha256 = head.partition(":")
    if head and (int(number) > len(entries) or entries[int(number) - 1].sha256 != sha256):
        raise LogDamaged(
            f"the promotion log of {name} in {store.uri_of(f'promotions/{name}')} has {len(entries)} entries, but "
            f"MLflow remembers entry {number} with sha256 {sha256[:12]}…; is this another --store than before, or was "
            "an entry removed or changed?"
        )
    return entries


def champion_of(client: MlflowClient, name: str) -> RegisteredVersion | None:
    """The champion of a registered model, as its alias stands; None where there is none yet.

    Raises:
        RegistryInputError: if it is none of ours.
    """
    try:
        number = read_aliases(client, name).champion
    except RegistryInputError:
        return None  # no such registered model
    return None if number is None else get_version(client, name, number)


def read_aliases(client: MlflowClient, name: str) -> Aliases:
    """How the aliases stand in MLflow."""
    with asking(f"show as {check_name(name)}"):
        aliases = client.get_registered_model(name).aliases
    versions = {alias: int(version) for alias, version in aliases.items()}
    return Aliases(versions.get(CHAMPION), versions.get(PREVIOUS))


@dataclass
class _Desk:
    """Log and aliases of one registered model, while something is done about them."""

    client: MlflowClient
    store: Store
    name: str
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = PromotionLog(self.store, self.name)
        self.entries = read_log(self.client, self.store, self.name)

    def finish_pending(self, actor: str) -> None:
        """Finish the move that a process which died has announced, if there is one; one that lives finishes its own."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.entries and self.entries[-1].is_move and time.monotonic() < deadline:
            time.sleep(_PATIENCE_SECONDS / 5)
            self.entries = read_log(self.client, self.store, self.name)
        if self.entries and self.entries[-1].is_move:
            pending = self.entries[-1]
            finished = self._carry_out(pending, actor)
            self.notes.append(f"finished entry {pending.number} of {pending.actor}: {finished.outcome}")
            self.entries = (*self.entries, finished)

    def observe(self, actor: str) -> Aliases:
        """How the aliases are; recorded, if it is not how the log left them."""
        expected, actual = aliases_after(self.entries), read_aliases(self.client, self.name)
        if actual != expected:
            entry = self.log.append(self._last, "outside", actor, expected, actual, reason="found by this actor")
            self._remember(entry)
            self.entries = (*self.entries, entry)
            self.notes.append(f"somebody had moved the aliases in MLflow ({expected} -> {actual}); recorded")
        return actual

    def move(self, kind: Kind, actor: str, reason: str, permit: _Permit, after: Aliases) -> Move:
        """Announce a move, make it, finish it."""
        entry = self.log.append(
            self._last, kind, actor, aliases_after(self.entries), after, reason=reason, forced=permit.forced,
            adapter_sha256=permit.version.adapter_sha256, request_id=permit.version.tags[REQUEST],
            policy_sha256=permit.policy_sha256, verdict_sha256=permit.verdict_sha256,
        )  # fmt: skip
        finished = self._carry_out(entry, actor)
        if finished.outcome == "abandoned":
            raise RegistryInputError(f"version {after.champion} of {self.name} was deleted in MLflow; nothing moved")
        return self.outcome(kind, finished.after, entry)

    def outcome(self, kind: Kind, aliases: Aliases, entry: Entry | None, note: str = "") -> Move:
        """What a call returns."""
        notes = (*self.notes, note) if note else tuple(self.notes)
        return Move(
            self.name, kind, aliases, entry.number if entry else None, entry is not None and entry.forced, notes
        )

    @property
    def _last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None

    def _carry_out(self, entry: Entry, actor: str) -> Entry:
        """Make the move of an announcement that stands last in the log; returns the entry that finishes it."""
        possible = self._exists(entry.after.champion)
        wanted = entry.after if possible else entry.before
        aliases = Aliases(
            *(version if self._exists(version) else None for version in (wanted.champion, wanted.previous))
        )
        if entry.forced and possible:
            self._mark_forced(entry)
        self._set(aliases)
        outcome = "moved" if possible else "abandoned"
        try:
            finished = self.log.append(entry, "finish", actor, entry.before, aliases, of=entry.number, outcome=outcome)
        except PromotionConflict:
            return self._finished_by_another(entry)
        self._remember(finished)
        return finished

    def _finished_by_another(self, entry: Entry) -> Entry:
        """Finish a move that another process finished first. Where later moves followed, our aliases may be
        written after theirs: restore theirs."""
        entries, seen = read_log(self.client, self.store, self.name), entry.number + 1
        while len(entries) > seen:
            self._set(entries[-1].after)
            seen, entries = len(entries), read_log(self.client, self.store, self.name)
        if len(entries) > entry.number + 1:
            raise PromotionConflict(
                f"entry {entry.number} of {self.name} was made, but a later one has replaced it: "
                f"{entries[-1].as_line().strip()}; look at `spare registry show {self.name}`"
            )
        return entries[entry.number]

    def _exists(self, version: int | None) -> bool:
        if version is None:
            return False
        try:
            with asking(f"show as version {version} of {self.name}"):
                self.client.get_model_version(self.name, str(version))
        except RegistryInputError:
            return False
        return True

    def _mark_forced(self, entry: Entry) -> None:
        place = (self.name, str(entry.after.champion))
        for tag, value in ((FORCED, "true"), (FORCED_REASON, f"{entry.actor}: {entry.reason}")):
            overwrite("mark a version as forced", partial(self.client.set_model_version_tag, *place, tag, value))

    def _set(self, aliases: Aliases) -> None:
        """Set the aliases, ``champion`` last: whoever loads by it never finds it missing.

        None is taken away that is not there: MLflow lets only whoever manages a model do that.
        """
        now = read_aliases(self.client, self.name)
        for alias, version, there in (
            (PREVIOUS, aliases.previous, now.previous),
            (CHAMPION, aliases.champion, now.champion),
        ):
            if version is None and there is None:
                continue
            if version is None:
                write = partial(self.client.delete_registered_model_alias, self.name, alias)
            else:
                write = partial(self.client.set_registered_model_alias, self.name, alias, str(version))
            overwrite(f"move the alias {alias}", write)

    def _remember(self, entry: Entry) -> None:
        head = f"{entry.number}:{entry.sha256}"
        overwrite("remember the log's head", partial(self.client.set_registered_model_tag, self.name, _HEAD, head))


def _check_words(actor: str, reason: str, force: bool) -> None:
    for what, text in (("actor", actor), ("reason", reason)):
        if len(text) > _WORDS or not text.isprintable():
            raise RegistryInputError(
                f"the {what} {text[:60]!r} must be one printable line of at most {_WORDS} characters"
            )
    if not actor.strip():
        raise RegistryInputError("say who promotes, with --by")
    if force and not reason.strip():
        raise RegistryInputError("to force it needs a reason; say it with --reason, it is kept for ever")
