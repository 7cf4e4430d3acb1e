"""Holding requests while a worker is at them: a lease that a thread renews, and that runs out when the process dies."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from spare_core.errors import LedgerConflict, StoreError
from spare_core.takedown.ledger import Ledger

_PART = 3
"""A lease is renewed after a third of its time: two renewals may be lost."""


def lease(worker: str, minutes: float) -> dict[str, Any]:
    """The facts of an event that says that ``worker`` is at it, from now on."""
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    return {"worker": worker, "lease_until": until.isoformat(timespec="milliseconds")}


@contextmanager
def renewed(ledger: Ledger, requests: Sequence[str], worker: str, minutes: float) -> Iterator[None]:
    """Renew the lease of ``requests``, which ``worker`` holds, while the body runs.

    One that was withdrawn or taken over meanwhile is renewed no more; the next event that the body adds is refused.
    """
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(minutes * 60 / _PART):
            try:
                ledger.renew(requests, worker, lease(worker, minutes))
            except LedgerConflict:
                ledger.catch_up()
            except StoreError as error:
                print(f"the lease could not be renewed: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
