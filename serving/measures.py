"""What Prometheus asks of the image server."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.following import FollowingPipeline
from serving.queue import Queue

_BUCKETS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Measures:
    """The figures of one server; ``outcomes`` and ``seconds`` are counted by it, the rest is looked at when asked."""

    def __init__(self, live: FollowingPipeline, queue: Queue) -> None:
        self._all = CollectorRegistry()
        self.outcomes = Counter(
            "spare_images_requests", "requests for a picture, by what became of them", ["outcome"], registry=self._all
        )
        self.seconds = Histogram(
            "spare_images_seconds", "from request to picture, waiting included", buckets=_BUCKETS, registry=self._all
        )
        for name, what, value in (
            ("asked", "pictures that are drawn or waited for", lambda: queue.asked),
            ("ready", "1 if the champion's adapter is on and the registry was seen", lambda: live.trouble is None),
            ("version", "version of the adapter that is on, 0 for none", lambda: live.version or 0),
            ("registry_seen_timestamp_seconds", "when the registry was seen", lambda: time.time() - live.age),
        ):
            Gauge(f"spare_images_{name}", what, registry=self._all).set_function(value)

    def as_text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._all)
