"""What may be meant otherwise than it is written: told to people, never decided for them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from spare_core.concepts.names import bare_name, names_within, same_concept
from spare_core.takedown.reading import Problem, TakedownList
from spare_core.takedown.request import TakedownRequest

_LONG: Final = timedelta(days=2 * 365)
"""A request that came in earlier, or is due later, may have another year written in it."""
_AHEAD: Final = timedelta(days=1)
"""Clocks and zones differ by less."""


def doubts(found: TakedownList, now: datetime) -> list[Problem]:
    """What is worth another look in the good rows of a list."""
    told = [
        Problem(found.file, row.line, field, reason)
        for row in found.rows
        for field, reason in _doubts(row.request, now)
    ]
    first: dict[str, tuple[str, str]] = {}
    for row in found.rows:
        for name in row.request.names:
            theirs, by = first.setdefault(bare_name(name), (name, row.request.request_id))
            if by != row.request.request_id and not same_concept(name, theirs):
                reason = (
                    f"{name!r} is {theirs!r} of {by}, written otherwise; each is erased for itself, or put them into "
                    "one request as aliases"
                )
                told.append(Problem(found.file, row.line, "concept", reason))
    return told


def _doubts(request: TakedownRequest, now: datetime) -> Iterator[tuple[str, str]]:
    for field, texts in (("concept", (request.concept,)), ("aliases", request.aliases)):
        for text in texts:
            if names := names_within(text):
                each = ", ".join(map(repr, names))
                yield field, f"{text!r} is taken as one name; if it is {each}, give each a request of its own"
    received, due = request.received_at, request.due_at
    if received > now + _AHEAD:
        yield "received_at", f"{received:%Y-%m-%d %H:%M %Z} is yet to come"
    elif received < now - _LONG:
        yield "received_at", f"{received:%Y-%m-%d %H:%M %Z} is {(now - received).days // 365} years ago"
    if due is not None and due > now + _LONG:
        yield "due_at", f"{due:%Y-%m-%d %H:%M %Z} is {(due - now).days // 365} years ahead"
