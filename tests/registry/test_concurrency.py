"""Promotions killed anywhere and promotions at once, in real processes: log and aliases agree, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from spare_core.models.unet import UNetDenoiser
from spare_core.registry.client import connect
from spare_core.registry.log import PromotionLog
from spare_core.registry.promotions import read_aliases
from spare_core.registry.views import verify
from spare_core.store import Store, open_store
from tests.support import forking
from tests.support.mlflow_servers import Server
from tests.support.registrations import register_one

pytest_plugins = ("tests.support.mlflow_fixtures",)
ROUNDS = 8


def registered(folder: Path, denoiser: UNetDenoiser, concept: str, store: Store) -> str:
    """Versions 1, 2 and 3 of a concept."""
    names = {register_one(folder / str(n), denoiser, concept, n, judged=False, store=store).name for n in (1, 2, 3)}
    return names.pop()


def rounds(server: Server, *arguments: object) -> list[Any]:
    """What tests.support.forked printed of each."""
    command = [sys.executable, "-m", "tests.support.forked", *map(str, arguments)]
    environment = {**os.environ, **server.environment}
    done = forking.run(command, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("kind", "points"), [("folder", 6), ("bucket", 3)])
def test_after_a_promotion_killed_anywhere_the_next_call_brings_log_and_aliases_together(
    kind: str, points: int, server: Server, denoiser: UNetDenoiser, tmp_path: Path, bucket: str
) -> None:
    store = open_store(str(tmp_path / "store") if kind == "folder" else f"s3://{bucket}")
    name = registered(tmp_path, denoiser, f"Killed {kind}", store)
    done = rounds(server, "killed", name, store.uri, points, 7)
    assert len(done) == points
    assert {one["next"] for one in done} == {0}
    assert {one["killed"] for one in done} == {-signal.SIGKILL}
    proof = verify(name, store)
    entries = PromotionLog(store, name).read()
    assert proof["entries"] == len(entries)
    assert {entry.of for entry in entries if entry.kind == "finish"} == {
        entry.number for entry in entries if entry.is_move
    }
    assert read_aliases(connect(), name) == entries[-1].after
    pairs = [(entry.actor, after.actor) for entry, after in itertools.pairwise(entries) if entry.is_move]
    taken_over = [by for actor, by in pairs if actor.startswith("killed") and by == "bert"]
    assert len(taken_over) >= points // 6, "moves that were announced, and finished by whoever came next"


def test_of_two_processes_at_once_one_wins_every_time(server: Server, denoiser: UNetDenoiser, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    name = registered(tmp_path, denoiser, "Raced", store)
    done = rounds(server, "raced", name, store.uri, ROUNDS)
    assert len(done) == ROUNDS
    entries = PromotionLog(store, name).read()
    replaced = []
    for both in done:
        won = [one for one in both if one["told"] is None]
        assert won, both
        for one in won:
            entry = entries[one["entry"] - 1]
            assert (entry.kind, entry.actor, entry.after.champion) == ("promote", one["actor"], one["version"])
        lost = [one for one in both if one["told"] is not None]
        assert all(f"spare registry show {name}" in one["told"] for one in lost)
        # Too slow: somebody else finished the move, then made one of their own. It is in the log, and told as that.
        replaced += [one for one in lost if "was made, but a later one has replaced it" in one["told"]]
    entered = [one["entry"] for both in done for one in both if one["entry"] is not None]
    assert len({*entered}) == len(entered), "no entry is two processes'"
    moves = [entry for entry in entries if entry.is_move]
    assert len(moves) == len(entered) + len(replaced), "and none is nobody's"
    assert sum(one["told"] is not None for both in done for one in both) > ROUNDS / 5, "they were hardly ever at once"
    assert verify(name, store)["entries"] == 2 * len(moves)
