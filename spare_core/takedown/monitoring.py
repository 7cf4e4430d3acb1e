"""What Prometheus asks of the takedown ledger and of the promotion logs beside it: due, late, failed, whole or not.

It only reads, and each time it reads everything that can have changed: what a batch says of itself is no news once the
batch no longer runs. Where the store cannot be read, the last figures stay, and ``spare_audit_read_timestamp_seconds``
says of when they are.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from spare_core.errors import LedgerDamaged, LogDamaged, SpareError
from spare_core.registry.log import PromotionLog
from spare_core.store import Store
from spare_core.takedown.ledger import FOLLOWING, Ledger
from spare_core.takedown.planning import overview

SOON: Final = timedelta(hours=24)
_log = logging.getLogger(__name__)


@dataclass
class Snapshot:
    """What was found at one look; ``promotions`` is None for a log that is damaged."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    entries: int = 0
    seconds: list[float] = field(default_factory=list)
    ledger_whole: bool = True
    promotions: dict[str, int | None] = field(default_factory=dict)
    read_at: float = 0.0


class Watch(Collector):
    """The figures of a store, as of the last :meth:`look`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.seen = Snapshot()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def look(self) -> None:
        """Read ledger and logs.

        Raises:
            StoreError: if they cannot be read; the figures stay those of the look before.
        """
        self.store.check()  # which fails fast
        seen = Snapshot(promotions={name: self._moves(name) for name in self._promoted()})
        try:
            ledger = Ledger(self.store, "audit")
        except LedgerDamaged as error:
            _log.error("%s", error)
            seen.rows, seen.entries, seen.seconds = self.seen.rows, self.seen.entries, self.seen.seconds
            seen.ledger_whole = False
        else:
            seen.rows, seen.entries = overview(ledger, datetime.now(UTC), SOON), ledger.number
            taken = (one.facts.get("seconds") for one in ledger.standings.values())
            seen.seconds = [float(one) for one in taken if one is not None]
        seen.read_at = time.time()
        self.seen = seen

    def text(self) -> str:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def follow(self, host: str, port: int, every: float) -> None:
        """Serve ``/metrics`` for ever, and look again every so many seconds.

        Raises:
            OSError: if the port cannot be had.
        """
        start_http_server(port, host, self.registry)
        while True:
            time.sleep(every)
            try:
                self.look()
            except SpareError as error:
                _log.warning("the figures stay those of %.0f: %s", self.seen.read_at, error)

    def describe(self) -> list[Metric]:
        """Nothing is asked of the store before the first look."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric; before the first look only that there was none."""
        seen = self.seen
        yield _gauge("spare_audit_read_timestamp_seconds", "When all this was read, or 0", seen.read_at)
        if not seen.read_at:
            return
        states = GaugeMetricFamily("spare_takedown_requests", "Requests of the ledger by state", labels=["state"])
        counts = Counter(row["state"] for row in seen.rows)
        for state in sorted({state for states_ in FOLLOWING.values() for state in states_}):
            states.add_metric([state], counts[state])
        yield states
        yield _gauge("spare_takedown_late", "Open requests past their deadline", sum(row["late"] for row in seen.rows))
        due = sum(row["soon"] for row in seen.rows)
        yield _gauge("spare_takedown_due_within_24h", "Open requests that are due within 24 hours", due)
        yield SummaryMetricFamily(
            "spare_takedown_erasure_seconds", "From the choice of a surrogate to the registered adapter, by request",
            count_value=len(seen.seconds), sum_value=sum(seen.seconds),
        )  # fmt: skip
        yield _gauge("spare_ledger_entries", "Entries of the ledger", seen.entries)
        yield _gauge("spare_ledger_whole", "1 while every entry follows from the one before", seen.ledger_whole)
        moves = CounterMetricFamily("spare_promotions", "Moves of champion in the log", labels=["model"])
        whole = GaugeMetricFamily("spare_promotion_log_whole", "1 while the log is whole", labels=["model"])
        for name, count in sorted(seen.promotions.items()):
            whole.add_metric([name], count is not None)
            if count is not None:
                moves.add_metric([name], count)
        yield moves
        yield whole

    def _promoted(self) -> set[str]:
        return {key.split("/")[1] for key in self.store.list("promotions")}

    def _moves(self, name: str) -> int | None:
        try:
            return sum(entry.is_move for entry in PromotionLog(self.store, name).read())
        except LogDamaged as error:
            _log.error("%s", error)
            return None


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)
