"""Promotions in processes of their own, forked from one that has everything imported and has not spoken to anyone yet.

``python -m tests.support.forked killed NAME STORE POINTS SEED``: promotes again and again; each time the process dies,
as by SIGKILL, at another of its requests, before it is sent or after the server has worked; then another one promotes.
``python -m tests.support.forked raced NAME STORE ROUNDS``: two processes promote different versions at the same moment.

Prints one JSON line a round.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

import boto3  # noqa: F401  imported once, not by each
import mlflow.artifacts
import mlflow.models  # noqa: F401

from spare_core.errors import PromotionConflict
from spare_core.evaluation.gate import Policy
from spare_core.registry import promotions
from spare_core.registry.log import PromotionLog
from spare_core.registry.promotions import promote, rollback
from spare_core.store import open_store

POLICY = Policy.from_file()
VERSIONS = (1, 2, 3)
promotions._PATIENCE_SECONDS = 0.3  # type: ignore[misc]


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """What ``work`` returned in a process of its own, or None; and how that ended: negative for a signal."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            result = json.dumps(work()).encode()
            os.write(writing, result)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def arm(point: int) -> list[int]:
    """Die at the given point, 0 for none: each request has two, before it is sent and after it was answered."""
    passed = [0]

    def pass_by() -> None:
        passed[0] += 1
        if passed[0] == point:
            os.kill(os.getpid(), signal.SIGKILL)

    send, receive = http.client.HTTPConnection.endheaders, http.client.HTTPConnection.getresponse

    def sent(connection: Any, *args: Any, **more: Any) -> None:
        pass_by()
        send(connection, *args, **more)

    def received(connection: Any) -> Any:
        answer = receive(connection)
        pass_by()
        return answer

    http.client.HTTPConnection.endheaders = sent  # type: ignore[method-assign, assignment]
    http.client.HTTPConnection.getresponse = received  # type: ignore[method-assign, assignment]
    return passed


def killed(name: str, store: str, points: int, seed: int) -> None:
    """The promotion is killed at so many points; whoever comes next promotes or rolls back."""
    choose = random.Random(seed)

    def move(version: int, actor: str, point: int = 0) -> int:
        """The number of points there were."""
        passed = arm(point)
        promote(name, version, open_store(store), actor, POLICY)
        return passed[0]

    for version in VERSIONS:  # once judged, a version has fewer requests to make
        forked(lambda version=version: move(version, "anna"))  # type: ignore[misc]
    for number in range(points):
        # The log grows, and so does the number of requests that read it: counted each time.
        _, there_are = forked(lambda: move(1, "anna"))
        # Every other one where it matters most: at its end, from the announcement on.
        point = choose.randint(1, there_are) if number % 2 else there_are - choose.randint(0, 24)
        ended, _ = forked(lambda point=point: move(2, f"killed at {point}", point))  # type: ignore[misc]
        version, back = choose.choice(VERSIONS), choose.random() < 0.3

        def following(version: int = version, back: bool = back) -> int | None:
            if back:
                return rollback(name, open_store(store), "bert", POLICY).aliases.champion
            return promote(name, version, open_store(store), "bert", POLICY).aliases.champion

        after, champion = forked(following)
        print(json.dumps({"point": point, "of": there_are, "killed": ended, "next": after, "champion": champion}))


def raced(name: str, store: str, rounds: int) -> None:
    """Two at once, on two different versions that are no champion; what became of each."""
    for _ in range(rounds):
        entries = PromotionLog(open_store(store), name).read()
        champion = entries[-1].after.champion if entries else 3
        others = [version for version in VERSIONS if version != champion]
        start, go = os.pipe()
        readers = []
        for actor, version in zip(("anna", "bert"), others, strict=True):
            reading, writing = os.pipe()
            if os.fork() == 0:
                try:
                    os.close(go)
                    os.read(start, 1)  # returns at once when the last holder of the other end is gone
                    os.write(writing, json.dumps(attempt(name, version, store, actor)).encode())
                finally:
                    os._exit(0)
            os.close(writing)
            readers.append(reading)
        os.close(go)
        results = []
        for reading in readers:
            with os.fdopen(reading, "rb") as answer:
                results.append(json.loads(answer.read()))
            os.wait()
        os.close(start)
        print(json.dumps(results))


def attempt(name: str, version: int, store: str, actor: str) -> dict[str, Any]:
    """One promotion: the entry it made, or what it was told."""
    try:
        entry, told = promote(name, version, open_store(store), actor, POLICY).entry, None
    except PromotionConflict as error:
        entry, told = None, str(error)
    return {"actor": actor, "version": version, "entry": entry, "told": told}


if __name__ == "__main__":
    what, name, store, *numbers = sys.argv[1:]
    if what == "killed":
        killed(name, store, int(numbers[0]), int(numbers[1]))
    else:
        raced(name, store, int(numbers[0]))
