"""Holding requests while a worker is at them: a lease that a thread renews, and that runs out when the process dies."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from spare_core.errors import InputError, LedgerConflict
from spare_core.store import Store
from spare_core.takedown.ledger import Ledger

LOST: Final = 75
"""Exit code of a process that lost its lease; sysexits.h calls it a failure for a while."""
_PART: Final = 3
"""A lease is renewed after a third of its time: two renewals may be lost."""
_SKEW: Final = 4
"""A clock may be off by a quarter of a lease, of which a third is left when it is renewed."""


def lease(worker: str, minutes: float) -> dict[str, Any]:
    """The facts of an event that says that ``worker`` is at it, from now on."""
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    return {"worker": worker, "lease_until": until.isoformat(timespec="milliseconds")}


def check_clock(store: Store, minutes: float) -> None:
    """Refuse a clock by which leases of so many minutes would be taken from those who hold them.

    Raises:
        InputError: saying how far it is from the store's.
        StoreError: if the store does not answer.
    """
    skew = store.skew()
    if abs(skew) > minutes * 60 / _SKEW:
        raise InputError(
            f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} that of {store.uri}; "
            f"with leases of {minutes:g} minutes at most {minutes * 60 / _SKEW:.0f} s are allowed, or requests would "
            "be taken from workers who are at them: set the clock (NTP)"
        )


def end_process(reason: str) -> None:
    """Another worker is at it, or may be: nothing that this process still does may count."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(LOST)


@contextmanager
def renewed(
    ledger: Ledger, requests: Sequence[str], worker: str, minutes: float, lost: Callable[[str], None] = end_process
) -> Iterator[None]:
    """Renew the lease of ``requests``, which ``worker`` holds, while the body runs.

    One that was withdrawn or taken over meanwhile is renewed no more, and the next event that the body adds for it is
    refused. Where that is so of all of them, or nothing could be renewed for the time of a lease, ``lost`` is called,
    once and from a thread, with what happened in words. No error ends the renewing.
    """
    ended = threading.Event()

    def renew() -> None:
        since = time.monotonic()
        while not ended.wait(minutes * 60 / _PART):
            try:
                try:
                    ledger.renew(requests, worker, lease(worker, minutes))
                except LedgerConflict:
                    ledger.catch_up()
                if all(ledger.standing(one).taken_from(worker) for one in requests):
                    lost(f"{', '.join(requests)}: withdrawn, or taken over by another worker; this one stops")
                    return
                since = time.monotonic()
            except Exception as error:  # whatever it is, it must be told, and the next try may go well
                print(f"the lease could not be renewed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                if time.monotonic() - since > minutes * 60:
                    lost(f"{', '.join(requests)}: the lease ran out unrenewed; this worker stops")
                    return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
