"""Bytes counted across threads."""

from __future__ import annotations

import threading

from spare_core.store.base import OnBytes


class ByteCounter:
    """Tells a callback how many of ``total`` bytes are done; what must be sent again is not counted twice."""

    def __init__(self, total: int, on_progress: OnBytes) -> None:
        self._done = self._reported = 0
        self._total, self._on_progress = total, on_progress
        self._lock = threading.Lock()
        on_progress(0, total)

    def add(self, count: int) -> None:
        """Count ``count`` bytes more, or fewer where a part starts again."""
        with self._lock:
            self._done += count
            if self._done > self._reported:
                self._reported = min(self._done, self._total)
                self._on_progress(self._reported, self._total)
