"""A list names pictures; what it may have read for it is a matter of the worker's owner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from spare_core.errors import ImagesError, InputError, ObjectTooLarge
from spare_core.takedown import sources
from spare_core.takedown.parameters import check_batch
from spare_core.takedown.sources import not_from_a_source, read_picture
from tests.takedown.test_erasing import GIVEN


@pytest.fixture
def allowed(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that pictures may lie in; beside it a secret."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "secret").write_text("token")
    monkeypatch.setenv("SPARE_SOURCES", f"{folder},s3://{bucket}/lists/pictures/")
    return folder


def test_nothing_is_read_from_elsewhere(allowed: Path, bucket: str, s3: Any) -> None:
    s3.put_object(Bucket=bucket, Key="lists/picturesque.png", Body=b"x")
    (allowed / "linked.png").symlink_to(allowed.parent / "secret")
    for uri in (
        "/etc/passwd", "/proc/self/environ", "/dev/zero", str(allowed), f"{allowed}/../secret", f"{allowed}/linked.png",
        f"s3://{bucket}/lists/picturesque.png", f"s3://{bucket}/ledger/1.json", "s3://another-bucket/lists/pictures/a.png",
        f"s3://{bucket}/lists/pictures/../../ledger/1.json", f"s3://{bucket}/lists/pictures//a.png",
        f"S3://{bucket}/lists/pictures/a.png", "secret", "",
    ):  # fmt: skip
        with pytest.raises(ImagesError, match=r"lies outside of what SPARE_SOURCES|is neither an s3|Is a directory"):
            read_picture(uri)


def test_where_nobody_says_from_where_nothing_is_read(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (allowed / "a.png").write_bytes(b"a picture")
    assert read_picture(str(allowed / "a.png")) == b"a picture"
    monkeypatch.setenv("SPARE_SOURCES", " , ")
    assert "SPARE_SOURCES does not say where" in not_from_a_source(str(allowed / "a.png"))
    monkeypatch.setenv("SPARE_SOURCES", "pictures")
    with pytest.raises(InputError, match="SPARE_SOURCES names 'pictures'; it must be"):
        check_batch(GIVEN)


def test_what_is_too_large_or_no_file_is_not_read(
    allowed: Path, bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 8)
    (allowed / "fits.png").write_bytes(b"12345678")
    (allowed / "large.png").write_bytes(b"123456789")
    os.mkfifo(allowed / "pipe")
    assert len(read_picture(str(allowed / "fits.png"))) == 8
    for name in ("large.png", "pipe"):
        with pytest.raises(ImagesError, match="is no file of at most"):
            read_picture(str(allowed / name))
    s3.put_object(Bucket=bucket, Key="lists/pictures/large.png", Body=b"123456789")
    with pytest.raises(ObjectTooLarge, match="has 9 bytes; at most 8 are read"):
        read_picture(f"s3://{bucket}/lists/pictures/large.png")
