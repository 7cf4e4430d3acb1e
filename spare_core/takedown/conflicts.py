"""What cannot be done together, found before any work: requests that contradict each other, and those asked twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spare_core.concepts.names import bare_name, normalise
from spare_core.takedown.request import AUTO, TakedownRequest


class Conflict(NamedTuple):
    """Requests of which not all can be done, in the order of the list, and why."""

    requests: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{', '.join(self.requests)}: {self.reason}"


class Comparison(NamedTuple):
    """``repeated`` maps a request to the earlier one that asks for the same; ``withdrawn`` one to the counter-notice
    beside it."""

    conflicts: list[Conflict]
    repeated: dict[str, str]
    withdrawn: dict[str, str]


def compare(requests: Iterable[TakedownRequest]) -> Comparison:
    """Look for conflicts and repetitions in a list, in one pass for each kind."""
    unique, conflicts = _by_identity(requests)
    withdrawn = {one.counter_notice_of: one.request_id for one in unique if one.counter_notice_of}
    erasing = [one for one in unique if one.concept and one.request_id not in withdrawn]
    repeated: dict[str, str] = {}
    by_name: dict[str, list[TakedownRequest]] = defaultdict(list)
    for one in erasing:
        for name in one.names:
            by_name[normalise(name)].append(one)
    for name, asking in by_name.items():
        first, *others = asking
        wanted = {normalise(one.surrogate): one.surrogate for one in asking if one.surrogate != AUTO}
        if len(wanted) > 1:
            all_of_them = " and ".join(map(repr, wanted.values()))
            conflicts.append(Conflict(_ids(asking), f"{name!r} cannot become {all_of_them}; agree on one surrogate"))
            continue
        for other in others:
            if {*map(normalise, other.names)} <= {*map(normalise, first.names)}:
                repeated[other.request_id] = first.request_id
            else:
                reason = f"{name!r} is in both, and the second names more; put all names into one of them"
                conflicts.append(Conflict(_ids([first, other]), reason))
    by_bare_name: dict[str, list[TakedownRequest]] = defaultdict(list)
    for name, asking in by_name.items():
        by_bare_name[bare_name(name)] += asking
    for one in erasing:
        for kept in one.protect:
            if others := [other for other in by_bare_name.get(bare_name(kept), []) if other is not one]:
                conflicts.append(
                    Conflict(_ids([one, *others]), f"{kept!r} is protected by the first and erased by others")
                )
    conflicts += circles(erasing)
    known = {one.request_id for one in unique}
    return Comparison(conflicts, repeated, {target: by for target, by in withdrawn.items() if target in known})


def _by_identity(requests: Iterable[TakedownRequest]) -> tuple[list[TakedownRequest], list[Conflict]]:
    """One request of each id; the same row twice is one."""
    found: dict[str, TakedownRequest] = {}
    conflicts = []
    for one in requests:
        first = found.setdefault(one.request_id, one)
        if first != one:
            reason = "the id names two different requests; ids are for ever, give the second its own"
            conflicts.append(Conflict((one.request_id,), reason))
    return list(found.values()), conflicts


def circles(erasing: Iterable[TakedownRequest]) -> Iterator[Conflict]:
    """Surrogates that lead back to where they came from."""
    leads = {normalise(name): one for one in erasing for name in one.names if one.surrogate != AUTO}
    done: set[str] = set()
    for start in leads:
        path: list[str] = []
        name = start
        while name in leads and name not in done and name not in path:
            path.append(name)
            name = normalise(leads[name].surrogate)
        if name in path:
            ring = path[path.index(name) :]
            circle = " -> ".join([*ring, name])
            yield Conflict(_ids([leads[one] for one in ring]), f"the surrogates go round in a circle: {circle}")
        done.update(path)


def _ids(requests: Iterable[TakedownRequest]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.request_id for one in requests))
