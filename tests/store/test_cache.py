"""What was fetched once is not fetched again, whoever else fetches it and whatever dies on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spare_core.errors import ObjectChanged, ObjectMissing, SettingsError
from spare_core.files.addresses import SCRATCH
from spare_core.store import fetch
from spare_core.store.base import PART
from spare_core.store.cache import cache_folder
from spare_core.store.eviction import allowed
from tests.store.test_store import tree
from tests.support.faulty_proxy import FaultyProxy

BIG = os.urandom(3 * PART)
FILES = {"big": BIG, "sub/small.txt": b"small", "empty": b""}


@pytest.fixture
def uri(bucket: str, s3: Any, proxy: FaultyProxy) -> str:
    """A folder in S3, behind the proxy."""
    for name, content in FILES.items():
        s3.put_object(Bucket=bucket, Key=f"env/model/{name}", Body=content)
    s3.put_object(Bucket=bucket, Key="env/model/", Body=b"")  # as consoles show an empty folder
    s3.put_object(Bucket=bucket, Key="env/model-other/x", Body=b"other")
    return f"s3://{bucket}/env/model"


def requests(proxy: FaultyProxy) -> tuple[int, int]:
    """How many listings and how many objects were asked for since the last call."""
    listings = proxy.count("GET", "list-type")
    objects = proxy.count("GET") + proxy.count("HEAD") - listings
    proxy.seen.clear()
    return listings, objects


def test_a_second_fetch_asks_for_the_listing_only(uri: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    first = fetch(uri)
    assert tree(first) == FILES and first.is_relative_to(tmp_path / "cache")
    assert requests(proxy) == (1, 3 + 1)
    assert fetch(f"{uri}/") == first
    assert requests(proxy) == (1, 0)


def test_one_object_is_fetched_as_one_file(uri: str, proxy: FaultyProxy) -> None:
    path = fetch(f"{uri}/sub/small.txt")
    assert (path.name, path.read_bytes()) == ("small.txt", b"small")
    requests(proxy)
    assert fetch(f"{uri}/sub/small.txt") == path
    assert requests(proxy) == (2, 0)


def test_only_what_is_wanted_is_fetched(uri: str, proxy: FaultyProxy) -> None:
    assert tree(fetch(uri, wanted=["*/*.txt"])) == {"sub/small.txt": b"small"}
    assert requests(proxy) == (1, 1)
    with pytest.raises(ObjectMissing, match=r"nothing at .* that matches none"):
        fetch(uri, wanted=["none"])
    assert tree(fetch(uri)) == FILES


def test_a_changed_object_is_fetched_and_what_was_fetched_before_stays(uri: str, bucket: str, s3: Any) -> None:
    first = fetch(uri)
    s3.put_object(Bucket=bucket, Key="env/model/sub/small.txt", Body=b"changed")
    second = fetch(uri)
    assert tree(second) == {**FILES, "sub/small.txt": b"changed"}
    assert tree(first) == FILES


def test_a_change_during_the_fetch_gives_the_new_state_not_a_mixture(
    uri: str, bucket: str, s3: Any, proxy: FaultyProxy
) -> None:
    other = os.urandom(len(BIG))

    def change() -> None:
        s3.put_object(Bucket=bucket, Key="env/model/big", Body=other)
        s3.delete_object(Bucket=bucket, Key="env/model/sub/small.txt")

    proxy.inject(path="model/big", skip=1, before=change)
    assert tree(fetch(uri)) == {"big": other, "empty": b""}


def test_what_keeps_changing_is_given_up(uri: str, bucket: str, s3: Any, proxy: FaultyProxy) -> None:
    def change() -> None:
        s3.put_object(Bucket=bucket, Key="env/model/big", Body=os.urandom(PART + 1))

    proxy.inject(path="model/big", times=99, before=change)
    with pytest.raises(ObjectChanged, match="model/big"):
        fetch(uri)
    assert proxy.count("GET", "list-type") == 3


def test_nothing_there_is_told_with_the_address(uri: str) -> None:
    for missing in (f"{uri}/none", uri.removesuffix("del"), f"{uri}/sub/small"):
        with pytest.raises(ObjectMissing, match=f"{missing};"):
            fetch(missing)
    with pytest.raises(SettingsError, match="s3://bucket"):
        fetch("/tmp")


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("SPARE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/spare"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/spare"


# --- processes -------------------------------------------------------------------------------------------------------


def in_process(call: Callable[..., object], *arguments: object) -> Any:
    """Start ``call`` in a fresh interpreter, which inherits the environment."""
    process = multiprocessing.get_context("spawn").Process(target=call, args=arguments)
    process.start()
    return process


def fetch_and_note(uri: str, note: Path) -> None:
    note.write_text(str(fetch(uri)), encoding="utf-8")


def test_processes_that_fill_the_cache_at_once_share_one_download(uri: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.inject(path="model/big", before=lambda: time.sleep(2.0))  # until all of them wait
    running = [in_process(fetch_and_note, uri, tmp_path / f"note-{number}") for number in range(3)]
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    places = {(tmp_path / f"note-{number}").read_text(encoding="utf-8") for number in range(3)}
    assert len(places) == 1 and tree(Path(places.pop())) == FILES
    assert requests(proxy) == (3, 3 + 1)


@pytest.mark.parametrize("part", [0, 2])
def test_a_killed_filler_neither_blocks_nor_spoils_the_next(
    uri: str, proxy: FaultyProxy, tmp_path: Path, part: int
) -> None:
    victims: list[Any] = []

    def kill() -> None:
        deadline = time.monotonic() + 20
        while len(recorded(tmp_path)) < part and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(victims[0].pid, signal.SIGKILL)

    proxy.inject(path="model/big", skip=part, before=kill)
    victims.append(in_process(fetch_and_note, uri, tmp_path / "note"))
    victims[0].join(60)
    assert victims[0].exitcode == -signal.SIGKILL and not (tmp_path / "note").exists()
    assert not list((tmp_path / "cache").rglob("big"))
    proxy.settle()
    requests(proxy)
    assert tree(fetch(uri)) == FILES
    assert proxy.count("GET", "model/big") == 3 - part


def recorded(folder: Path) -> list[int]:
    """The parts of the big file that are on the disk for good."""
    for record in folder.rglob(f"{SCRATCH}/*.json"):
        done: list[int] = json.loads(record.read_text(encoding="utf-8"))["done"]
        return done
    return []


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [torn, emptied, Path.unlink])
def test_leftovers_that_are_damaged_are_not_believed(
    uri: str, proxy: FaultyProxy, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    proxy.inject(path="model/big", skip=1, times=99, status=403, code="AccessDenied")
    for pattern in ("*.json", "*.data", "finished.jsonl"):
        with pytest.raises(Exception, match="denied"):
            fetch(uri)
        for file in (tmp_path / "cache").rglob(f"{SCRATCH}/{pattern}"):
            damage(file)
    proxy.faults.clear()
    assert tree(fetch(uri)) == FILES


def test_what_was_deleted_from_the_cache_is_fetched_again(uri: str, tmp_path: Path) -> None:
    (fetch(uri) / "big").unlink()
    assert tree(fetch(uri)) == FILES
    shutil.rmtree(tmp_path / "cache")
    assert tree(fetch(uri)) == FILES


# --- a bound ---------------------------------------------------------------------------------------------------------


def cached(tmp_path: Path) -> int:
    """How many copies of the big file there are."""
    return len(list((tmp_path / "cache").rglob("big")))


def test_a_bounded_cache_drops_what_was_used_longest_ago(
    uri: str, bucket: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes that end: what they fetched is then nobody's any more."""
    monkeypatch.setenv("SPARE_CACHE_LIMIT", str(int(2.5 * len(BIG))))
    for name in ("second", "third"):
        s3.put_object(Bucket=bucket, Key=f"env/{name}/big", Body=BIG)
    places = []
    for name in ("model", "second", "model", "third"):
        process = in_process(fetch_and_note, f"s3://{bucket}/env/{name}", tmp_path / "note")
        process.join(60)
        assert process.exitcode == 0
        places.append(Path((tmp_path / "note").read_text(encoding="utf-8")))
    model, second, again, third = places
    assert (model, cached(tmp_path)) == (again, 2)
    assert (model.exists(), second.exists(), third.exists()) == (True, False, True)
    assert tree(fetch(f"s3://{bucket}/env/second")) == {"big": BIG}, "it is fetched again"


def test_what_a_living_process_uses_stays_however_small_the_bound(
    uri: str, bucket: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket=bucket, Key="env/second/big", Body=BIG)
    ours = fetch(uri)
    monkeypatch.setenv("SPARE_CACHE_LIMIT", "1k")
    process = in_process(fetch_and_note, f"s3://{bucket}/env/second", tmp_path / "note")
    process.join(60)
    assert process.exitcode == 0
    assert tree(ours) == FILES
    assert Path((tmp_path / "note").read_text(encoding="utf-8")).is_dir(), "nor what was fetched just now"
    fetch(f"{uri}/sub/small.txt")
    assert tree(ours) == FILES
    assert cached(tmp_path) == 1, "the other process has ended"


@pytest.mark.parametrize("limit", ["much", "-1", "50X", "1e9", "G"])
def test_a_bound_that_is_no_size_is_refused_before_anything_is_asked(
    uri: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("SPARE_CACHE_LIMIT", limit)
    with pytest.raises(SettingsError, match=f"SPARE_CACHE_LIMIT is '{limit}'; it must be a size such as 50G"):
        fetch(uri)
    assert requests(proxy) == (0, 0)


@pytest.mark.parametrize(
    ("limit", "size"), [("", None), ("10", 10), ("1.5k", 1536), ("2 GiB", 2**31), ("3TB", 3 * 2**40)]
)
def test_a_bound_is_written_as_people_do(monkeypatch: pytest.MonkeyPatch, limit: str, size: int | None) -> None:
    monkeypatch.setenv("SPARE_CACHE_LIMIT", limit)
    assert allowed() == size
