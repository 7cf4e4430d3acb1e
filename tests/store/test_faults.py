"""What a store does when the network and the storage fail: over HTTP, through a proxy that breaks real answers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from spare_core.errors import (
    ObjectChanged,
    ObjectDenied,
    ObjectExists,
    ObjectMissing,
    SettingsError,
    StorageError,
    StoreError,
    StoreUnavailable,
)
from spare_core.files.addresses import SCRATCH
from spare_core.store import Store, fetch, open_store
from spare_core.store.base import PART
from tests.store.test_store import filled, tree
from tests.support.faulty_proxy import FaultyProxy

MIB = 2**20
BIG = os.urandom(3 * PART)
"""Sent and fetched in three parts."""


@pytest.fixture
def store(bucket: str, proxy: FaultyProxy) -> Store:
    """Behind the proxy."""
    return open_store(f"s3://{bucket}/env")


def put(s3: Any, bucket: str, key: str, content: bytes) -> None:
    """Write as others do: without our metadata, overwriting."""
    s3.put_object(Bucket=bucket, Key=f"env/{key}", Body=content)


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_connection_cut_in_the_middle_of_a_part_is_continued_there(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put(s3, bucket, "m/big", BIG)
    put(s3, bucket, "m/small", b"small")
    proxy.inject(path="m/big", cut=3 * MIB, times=2)
    proxy.inject(path="m/small", cut=2)
    told: list[tuple[int, int]] = []
    store.download("m", tmp_path / "got", lambda *progress: told.append(progress))
    assert tree(tmp_path / "got") == {"big": BIG, "small": b"small"}
    assert told == sorted(told) and told[-1] == (len(BIG) + 5, len(BIG) + 5)
    assert proxy.count("GET", "m/big") == 3 + 2
    assert proxy.count("GET", "m/small") == 1 + 1


def test_a_truncated_body_is_never_taken_for_the_whole(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put(s3, bucket, "m/big", BIG)
    put(s3, bucket, "m/small", b"small")
    for path in ("m/big", "m/small"):
        proxy.inject(path=path, shorten=3, times=2)
    store.download("m", tmp_path / "got")
    assert tree(tmp_path / "got") == {"big": BIG, "small": b"small"}
    proxy.inject(path="m/small", shorten=3)
    assert store.read("m/small") == b"small"


def test_bytes_damaged_on_the_way_are_fetched_again(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put(s3, bucket, "m/big", BIG)
    store.upload(filled(tmp_path / "ours", {"ours": BIG}), "m")
    for path in ("m/big", "m/ours"):
        proxy.inject(path=path, change=flipped)
    store.download("m", tmp_path / "got")
    assert tree(tmp_path / "got") == {"big": BIG, "ours": BIG}
    proxy.inject(path="m/big", change=flipped)
    assert store.read("m/big") == BIG


def test_bytes_that_stay_damaged_are_refused_and_not_shown(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put(s3, bucket, "m/a", b"content")
    proxy.inject(path="m/a", change=flipped, times=99)
    with pytest.raises(ObjectChanged, match=rf"s3://{bucket}/env/m/a: its bytes are not"):
        store.download("m", tmp_path / "got")
    assert not (tmp_path / "got/a").exists()


def flipped(body: bytes) -> bytes:
    return bytes([body[0] ^ 1]) + body[1:]


def test_a_busy_storage_is_asked_again(store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(s3, bucket, "m/a", b"1")
    for method in ("GET", "PUT", "HEAD"):
        proxy.inject(method=method, status=503, code="SlowDown", times=2)
    assert store.list("m") == ["m/a"]
    store.create("m/b", b"2")
    assert store.exists("m/b")
    proxy.inject(path="m/", status=503, code="SlowDown", times=2)
    store.download("m", tmp_path / "got")
    assert tree(tmp_path / "got") == {"a": b"1", "b": b"2"}


def test_a_storage_that_stays_busy_is_given_up(store: Store, proxy: FaultyProxy) -> None:
    proxy.inject(status=503, code="SlowDown", times=99)
    with pytest.raises(StoreUnavailable, match="503 SlowDown to every one of several tries"):
        store.check()
    assert 2 <= proxy.count("GET") <= 6


def test_how_often_a_request_is_tried_is_said_by_awss_own_variable(
    proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tries, given in ((6, ""), (2, "2"), (8, "8")):
        if given:
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", given)
        proxy.inject(path="never-there", status=503, code="SlowDown", times=99)
        before = proxy.count("GET", "never-there")
        with monkeypatch.context() as patch:
            patch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
            with pytest.raises(StoreUnavailable):
                open_store(f"s3://{bucket}/x").read("never-there")
        assert proxy.count("GET", "never-there") - before == tries
        proxy.faults.clear()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "often")
    with pytest.raises(SettingsError, match="AWS_MAX_ATTEMPTS is 'often'"):
        open_store(f"s3://{bucket}/x")


def test_a_download_that_breaks_for_good_ends_and_goes_on_later(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spare_core.store.downloads.pauses", lambda: iter([0.0] * 5))
    put(s3, bucket, "m/big", BIG)
    put(s3, bucket, "m/small", b"small")
    proxy.inject(path="m/big", cut=0, times=99, skip=2)
    with pytest.raises(StoreUnavailable, match=r"m/big: .* broke off at byte \d+ .*run it again"):
        store.download("m", tmp_path / "got")
    assert not (tmp_path / "got/big").exists()
    proxy.faults.clear()
    proxy.seen.clear()
    store.download("m", tmp_path / "got")
    assert tree(tmp_path / "got") == {"big": BIG, "small": b"small"}
    assert proxy.count("GET", "m/big") < 3


def test_an_object_that_changes_while_it_is_read_is_read_anew(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    other = os.urandom(len(BIG))
    put(s3, bucket, "m/big", BIG)
    put(s3, bucket, "m/a", b"a")
    proxy.inject(path="m/big", skip=1, before=lambda: put(s3, bucket, "m/big", other))
    proxy.inject(path="m/a", before=lambda: s3.delete_object(Bucket=bucket, Key="env/m/a"))
    store.download("m", tmp_path / "got")
    got = tree(tmp_path / "got")
    assert got.pop("big") == other
    assert got in ({}, {"a": b"a"})


def test_an_object_that_keeps_changing_is_given_up(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put(s3, bucket, "m/a", b"0")
    proxy.inject(path="m/a", times=99, before=lambda: put(s3, bucket, "m/a", os.urandom(8)))
    with pytest.raises(ObjectChanged, match=rf"s3://{bucket}/env/m/a: it became another object"):
        store.download("m", tmp_path / "got")
    assert not (tmp_path / "got/a").exists()
    assert proxy.count("GET", "m/a") == 3


def test_what_is_missing_or_denied_is_told_at_once(
    store: Store, bucket: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    with pytest.raises(ObjectMissing, match=rf"s3://{bucket}/env/none"):
        store.read("none")
    assert proxy.count("GET") == 1
    calls = {
        "GET": [store.check, lambda: store.read("a"), lambda: store.list("a"), lambda: store.download("a", tmp_path)],
        "PUT": [lambda: store.create("a", b"")],
        "HEAD": [lambda: store.exists("a"), lambda: store.put_content(b"", "a")],
    }
    for method, denied in calls.items():
        for call in denied:
            proxy.inject(method=method, status=403, code="AccessDenied")
            with pytest.raises(ObjectDenied, match=rf"s3://{bucket}/.*access denied.*AWS_ACCESS_KEY_ID") as caught:
                call()
            assert caught.value.exit_code == 2
    assert not proxy.faults[-1].times


def test_missing_credentials_are_told_with_what_to_set(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ObjectDenied, match="AWS_SECRET_ACCESS_KEY"):
        open_store(f"s3://{bucket}").check()
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(ObjectDenied, match="AWS_PROFILE"):
        open_store(f"s3://{bucket}")


# --- the storage is down ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["check", "fetch"])
def test_a_storage_that_is_down_is_told_in_under_ten_seconds(
    store: Store, proxy: FaultyProxy, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.close()
    host = proxy.uri.removeprefix("http://")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://planted:s3cret@{host}")
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=rf"{host} could not be reached.*AWS_ENDPOINT_URL") as caught:
        open_store(store.uri).check() if call == "check" else fetch(f"{store.uri}/m")
    assert time.monotonic() - started < 10
    assert "s3cret" not in str(caught.value) and "planted" not in str(caught.value)


def test_a_storage_that_never_answers_is_told_in_under_ten_seconds(store: Store, proxy: FaultyProxy) -> None:
    proxy.inject(silent=60.0, times=99)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="did not answer"):
        store.check()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("url", ["planted:s3cret", "http://planted:s3cret@", "http://planted:s3cret@host:port"])
def test_an_endpoint_that_is_none_is_refused_without_repeating_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises((SettingsError, StoreError)) as caught:
        open_store(f"s3://{bucket}").check()
    assert "AWS_" in str(caught.value) and "s3cret" not in str(caught.value)


# --- uploads and creates ---------------------------------------------------------------------------------------------


def test_an_upload_survives_cut_connections_and_a_busy_storage(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    files = {"big": BIG, "small": b"small"}
    proxy.inject(method="PUT", path="partNumber=2", cut_request=MIB)
    proxy.inject(method="PUT", path="partNumber=3", status=503, code="SlowDown")
    proxy.inject(method="PUT", path="m/small", lose_answer=True)
    proxy.inject(method="POST", path="uploadId=", lose_answer=True)
    told: list[tuple[int, int]] = []
    store.upload(filled(tmp_path / "source", files), "m", lambda *progress: told.append(progress))
    assert {key: store.read(key) for key in store.list("m")} == {f"m/{name}": files[name] for name in files}
    assert told == sorted(told) and told[-1] == (len(BIG) + 5, len(BIG) + 5)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_what_is_half_uploaded_is_neither_visible_nor_left_behind(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    seen: list[list[str]] = []
    proxy.inject(
        method="PUT", path="partNumber=3", before=lambda: seen.append(keys(s3, bucket)), status=403, code="Denied"
    )
    with pytest.raises(ObjectDenied, match="m/big"):
        store.upload(filled(tmp_path / "source", {"big": BIG}), "m")
    assert seen == [[]] and keys(s3, bucket) == []
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def keys(s3: Any, bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_of_two_uploads_in_parts_that_race_one_wins_and_is_not_overwritten(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    source = filled(tmp_path / "source", {"big": BIG})
    proxy.inject(method="POST", path="uploadId=", before=lambda: put(s3, bucket, "m/big", b"first"))
    with pytest.raises(ObjectExists, match="m/big"):
        store.upload(source, "m")
    assert store.read("m/big") == b"first"
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_the_same_content_uploaded_twice_at_once_is_fine(store: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    source = filled(tmp_path / "source", {"big": BIG})
    other = threading.Thread(target=lambda: open_store(store.uri).upload(source, "m"))
    proxy.inject(method="POST", path="uploadId=", before=lambda: (other.start(), other.join()))
    store.upload(source, "m")
    assert store.read("m/big") == BIG


def test_the_parts_that_a_killed_upload_left_are_dropped_by_the_next(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    source = filled(tmp_path / "source", {"big": BIG})
    code = "import sys\nfrom pathlib import Path\nfrom spare_core.store import open_store\n"
    code += "open_store(sys.argv[1]).upload(Path(sys.argv[2]), 'm')"
    victim = subprocess.Popen([sys.executable, "-c", code, store.uri, str(source)])
    proxy.inject(method="PUT", path="partNumber=2", before=victim.kill)
    victim.wait(60)
    assert keys(s3, bucket) == []
    assert len(s3.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1
    store.upload(source, "m")
    assert store.read("m/big") == BIG
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_content_that_is_there_is_not_sent_again(store: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    big = filled(tmp_path, {"big": BIG}) / "big"
    key = store.put_content(big, "artifacts")
    sent = proxy.count("PUT")
    assert store.put_content(big, "artifacts") == key and store.put_content(BIG, "artifacts") == key
    assert proxy.count("PUT") == sent


def test_a_create_whose_answer_was_lost_is_a_success(store: Store, proxy: FaultyProxy) -> None:
    proxy.inject(method="PUT", lose_answer=True)
    store.create("a", b"with a nonce")
    assert proxy.count("PUT") == 2
    with pytest.raises(ObjectExists):
        store.create("a", b"with a nonce")


def test_a_storage_that_overwrites_in_spite_of_the_condition_is_found_out(store: Store, proxy: FaultyProxy) -> None:
    store.check_create()
    store.check_create()
    proxy.inject(method="PUT", path="conditional-create", drop_header="If-None-Match", times=99)
    with pytest.raises(StoreError, match=r"conditional-create was overwritten: .* does not honour If-None-Match"):
        store.check_create()


def test_a_create_that_lost_after_its_retry_says_so(store: Store, bucket: str, s3: Any, proxy: FaultyProxy) -> None:
    proxy.inject(method="PUT", status=503, code="SlowDown")
    proxy.inject(method="PUT", before=lambda: put(s3, bucket, "a", b"theirs"))
    with pytest.raises(ObjectExists, match="is there already"):
        store.create("a", b"ours")
    assert store.read("a") == b"theirs"


def test_a_create_beside_another_one_under_way_waits_for_its_end(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy
) -> None:
    proxy.inject(method="PUT", status=409, code="ConditionalRequestConflict")
    store.create("a", b"ours")
    proxy.inject(method="PUT", status=409, code="ConditionalRequestConflict")
    proxy.inject(method="PUT", before=lambda: put(s3, bucket, "b", b"theirs"))
    with pytest.raises(ObjectExists):
        store.create("b", b"ours")
    assert (store.read("a"), store.read("b")) == (b"ours", b"theirs")


# --- the disk --------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    store: Store, bucket: str, s3: Any, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, bucket, "m/a", b"a" * 10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 9}))
    with pytest.raises(StorageError, match="MiB free"):
        store.download("m", tmp_path / "got")
    assert proxy.count("GET", "m/a") == 0


def test_a_place_that_cannot_be_written_is_told(store: Store, bucket: str, s3: Any, tmp_path: Path) -> None:
    put(s3, bucket, "m/a", b"a")
    filled(tmp_path, {"file": b""})
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        store.download("m", tmp_path / "file")


def test_the_scratch_folder_does_not_stay(store: Store, bucket: str, s3: Any, tmp_path: Path) -> None:
    put(s3, bucket, "m/a", b"a")
    store.download("m", tmp_path / "got")
    assert not (tmp_path / "got" / SCRATCH).exists()
