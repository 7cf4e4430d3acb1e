"""A store in S3 and a store in a folder keep the same promises."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spare_core.errors import InputError, ObjectExists, ObjectMissing, SettingsError, StoreError
from spare_core.files.addresses import SCRATCH, check_key, parse
from spare_core.store import FolderStore, Store, open_store

BIG = 17 * 2**20
"""Bytes that are sent and fetched in three parts."""


@pytest.fixture(params=["s3", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue('bucket')}/env/dev")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# --- addresses and keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["", "store", "./store", "s3:/bucket/x", "s3://", "s3:///x", "s3://B_cket/x", "http://h/x",
                                 "s3://ab", "s3://bucket/a//b", "s3://bucket/../x", "/tmp/a\0b", "s3://bucket:80/x",
                                 "file:///tmp"])  # fmt: skip
def test_an_address_that_is_none_is_refused_with_what_is_allowed(uri: str) -> None:
    with pytest.raises(SettingsError, match=r"s3://bucket|relative paths") as caught:
        open_store(uri)
    assert caught.value.exit_code == 2


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        open_store("s3://AKIAPLANTED:planted/secret+0@bucket/prefix")
    assert "planted" not in str(caught.value).lower()


def test_an_address_is_told_as_it_was_given(bucket: str, tmp_path: Path) -> None:
    assert open_store(f"s3://{bucket}/a/b/").uri_of("c/d") == f"s3://{bucket}/a/b/c/d"
    assert open_store(f"s3://{bucket}").uri_of("c") == f"s3://{bucket}/c"
    assert open_store(f"{tmp_path}/").uri_of("c") == f"{tmp_path}/c"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/..", ".", "a\nb", "a\0b", "\x7f",
                                 "a\x85b", "é" * 513, "a/" * 512 + "a", f"a/{SCRATCH}/b", "\ud800"])  # fmt: skip
def test_a_key_that_could_lead_astray_is_refused_everywhere(store: Store, key: str) -> None:
    for call in (store.read, store.exists, lambda key: store.create(key, b"")):
        with pytest.raises(SettingsError, match="key "):
            call(key)
    assert store.list("") == []


def test_a_key_is_too_long_together_with_its_prefix(bucket: str) -> None:
    with pytest.raises(SettingsError, match="at most 1024"):
        open_store(f"s3://{bucket}/{'p' * 600}").create("k" * 600, b"")


@given(st.text(max_size=40))
def test_an_accepted_key_stays_inside_its_folder(key: str) -> None:
    try:
        check_key(key)
    except SettingsError:
        return
    path = os.path.normpath(f"/store/{key}")
    assert path == f"/store/{key}"


@given(st.text(max_size=60))
def test_whatever_is_given_as_an_address_is_one_or_is_refused(uri: str) -> None:
    try:
        parse(uri)
    except SettingsError:
        return
    assert uri[:5].lower() == "s3://" or Path(uri).is_absolute()


def test_names_from_a_takedown_list_are_just_names(store: Store) -> None:
    names = ["requests/Zoë's «Neon» + 100 % 🦀/a b&c=d?e#f.json", "requests/~", "requests/...", "requests/%2e%2e/x"]
    for name in names:
        store.create(name, name.encode())
    assert store.list("requests") == sorted(names)
    assert all(store.read(name) == name.encode() for name in names)


# --- objects ---------------------------------------------------------------------------------------------------------


def test_what_is_created_is_read_back(store: Store) -> None:
    store.check()
    store.create("a/b.json", b"content")
    store.create("a/empty", b"")
    assert (store.read("a/b.json"), store.read("a/empty")) == (b"content", b"")
    assert store.exists("a/b.json") and not store.exists("a") and not store.exists("a/c")


def test_what_is_missing_is_told_with_its_address(store: Store) -> None:
    with pytest.raises(ObjectMissing, match=store.uri_of("a/none")) as caught:
        store.read("a/none")
    assert caught.value.exit_code == 2


def test_nothing_is_ever_overwritten(store: Store) -> None:
    store.create("a", b"first")
    for content in (b"second", b"first"):
        with pytest.raises(ObjectExists, match=store.uri_of("a")):
            store.create("a", content)
    assert store.read("a") == b"first"


def test_a_prefix_is_a_folder_not_the_start_of_a_name(store: Store) -> None:
    for key in ("log/a/2", "log/a/1", "log/ab/1", "log/a.txt", "other"):
        store.create(key, b"")
    assert store.list("log/a") == store.list("log/a/") == ["log/a/1", "log/a/2"]
    assert store.list("none") == []
    assert store.list("") == ["log/a.txt", "log/a/1", "log/a/2", "log/ab/1", "other"]


def one_request_at_a_time(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the storage promises and moto does not: it looks whether there is an object, then writes, in two steps."""
    lock, put_object = threading.Lock(), client.put_object

    def put(**request: Any) -> Any:
        with lock:
            return put_object(**request)

    monkeypatch.setattr(client, "put_object", put)


def test_of_creators_that_race_exactly_one_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(store, FolderStore):
        one_request_at_a_time(store.client, monkeypatch)
    for turn in range(5):
        barrier, won = threading.Barrier(6), []

        def create(number: int, key: str, barrier: threading.Barrier, won: list[int]) -> None:
            barrier.wait()
            try:
                store.create(key, b"%d" % number)
            except ObjectExists:
                return
            won.append(number)

        threads = [threading.Thread(target=create, args=(i, f"race/{turn}", barrier, won)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read(f"race/{turn}") == b"%d" % won[0]


def test_content_has_the_key_of_its_digest(store: Store, tmp_path: Path) -> None:
    content = os.urandom(1000)
    file = filled(tmp_path, {"file": content}) / "file"
    key = store.put_content(content, "artifacts", ".bin")
    assert key == f"artifacts/{hashlib.sha256(content).hexdigest()}.bin"
    assert store.put_content(file, "artifacts/", ".bin") == key
    assert store.list("") == [key]
    assert store.read(store.put_content(b"", "")) == b""


def test_a_store_that_is_not_there_is_told_by_the_check(bucket: str, tmp_path: Path) -> None:
    for uri in ("s3://no-such-bucket-here/x", str(tmp_path / "none")):
        with pytest.raises(ObjectMissing, match=uri.removesuffix("/x")):
            open_store(uri).check()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_goes_up_and_comes_down_as_it_was(store: Store, tmp_path: Path) -> None:
    files = {"big.bin": os.urandom(BIG), "sub/deep/small äö.txt": b"x", "empty": b"", ".hidden": b"h"}
    source = filled(tmp_path / "source", files)
    told: list[tuple[int, int]] = []
    store.upload(source, "models/one", lambda *progress: told.append(progress))
    total = sum(map(len, files.values()))
    assert (told[0], told[-1]) == ((0, total), (total, total))
    assert told == sorted(told)
    assert store.list("models") == sorted(f"models/one/{name}" for name in files)

    told.clear()
    store.download("models/one/", tmp_path / "target", lambda *progress: told.append(progress))
    assert tree(tmp_path / "target") == files
    assert (told[0], told[-1]) == ((0, total), (total, total))
    assert told == sorted(told)


def test_a_second_upload_goes_on_where_the_first_ended(store: Store, tmp_path: Path) -> None:
    source = filled(tmp_path / "source", {"a": b"1", "b": b"2"})
    store.create("up/a", b"1")
    store.upload(source, "up")
    store.upload(source, "up")
    assert {key: store.read(key) for key in store.list("up")} == {"up/a": b"1", "up/b": b"2"}


def test_an_upload_onto_other_content_is_refused(store: Store, tmp_path: Path) -> None:
    store.create("up/b", b"other")
    with pytest.raises(ObjectExists, match="up/b"):
        store.upload(filled(tmp_path / "source", {"a": b"1", "b": b"2"}), "up")
    assert store.read("up/b") == b"other"


def test_a_folder_that_cannot_be_uploaded_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/link").symlink_to("nowhere")
    for name, match in (("none", "no folder"), ("empty", "no files"), ("broken", "link")):
        with pytest.raises(InputError, match=match):
            store.upload(tmp_path / name, "up")
    assert store.list("") == []


def test_a_download_of_nothing_is_an_error(store: Store, tmp_path: Path) -> None:
    store.create("models/other", b"")
    with pytest.raises(ObjectMissing, match="models/one"):
        store.download("models/one", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_download_replaces_what_is_older_and_leaves_the_rest(store: Store, tmp_path: Path) -> None:
    store.create("up/a", b"new")
    target = filled(tmp_path / "target", {"a": b"old", "mine": b"m"})
    store.download("up", target)
    assert tree(target) == {"a": b"new", "mine": b"m"}


@pytest.mark.parametrize("keys", [["m/../../escaped"], ["m//etc"], ["m/a", "m/a/b"], [f"m/{SCRATCH}/lock"]])
def test_keys_of_others_that_cannot_be_files_are_refused(bucket: str, s3: Any, tmp_path: Path, keys: list[str]) -> None:
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    with pytest.raises(StoreError, match=r"cannot be a local file|lies under"):
        open_store(f"s3://{bucket}").download("m", tmp_path / "target")
    assert not list(tmp_path.rglob("escaped")) and not (tmp_path / "target").exists()


def test_a_listing_of_more_than_one_page_is_whole(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/many")
    keys = [f"k/{number:04d}" for number in range(1001)]
    for key in keys:
        store.create(key, b"")
    assert store.list("k") == keys


def test_a_key_below_another_key_is_refused_in_a_folder(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    store.create("a", b"1")
    with pytest.raises(StoreError, match="a/b: a part of the key is an object itself"):
        store.create("a/b", b"2")
    assert store.list("") == ["a"]
    assert list((tmp_path / SCRATCH).iterdir()) == []


def test_an_object_is_seen_whole_or_not_at_all(store: Store) -> None:
    content, sizes, ended = os.urandom(BIG), set(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            sizes.update(entry.size for entry in store.entries("a"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    store.create("a/big", content)
    ended.set()
    watcher.join()
    assert sizes <= {BIG}
