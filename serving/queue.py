"""One picture at a time, and so many that wait for their turn; who goes away makes room."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class QueueFull(Exception):
    """There is no room; ``retry_after`` is in how many seconds there may be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"as many pictures wait as may; try again in {retry_after} s")
        self.retry_after = retry_after


class Left(Exception):
    """Nobody waits for the answer any more."""


class Queue:
    """Work that is done one after the other in a thread of its own: whoever asks for something else is answered.

    Args:
        waiting: how many may wait beside the one that is worked on.
    """

    def __init__(self, waiting: int) -> None:
        self.room = waiting + 1
        self.asked = 0
        """How many are being worked on (one at most) or wait."""
        self._seconds = 1.0  # of the last work
        self._count = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")

    async def run(self, work: Callable[[threading.Event], Result], left: Callable[[], Awaitable[None]]) -> Result:
        """What ``work`` returns, in its turn.

        Args:
            work: is given what says that it shall stop, which it may look at between two steps.
            left: ends when nobody waits for the answer any more.

        Raises:
            QueueFull: before anything is done.
            Left: if ``left`` ended first; ``work`` is not begun then, or told to stop.
        """
        with self._count:
            if self.asked >= self.room:
                raise QueueFull(max(1, math.ceil(self._seconds * self.asked)))
            self.asked += 1
        stop = threading.Event()
        job = self._thread.submit(self._timed, work, stop)
        job.add_done_callback(self._done)
        answer, leaving = asyncio.wrap_future(job), asyncio.ensure_future(left())
        try:
            both: set[asyncio.Future[Any]] = {answer, leaving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Left
            return answer.result()
        finally:
            stop.set()
            answer.cancel()  # and the job with it, unless it was begun
            leaving.cancel()

    def _timed(self, work: Callable[[threading.Event], Result], stop: threading.Event) -> Result:
        begun = time.monotonic()
        result = work(stop)
        self._seconds = time.monotonic() - begun
        return result

    def _done(self, job: Future[Result]) -> None:
        with self._count:
            self.asked -= 1
