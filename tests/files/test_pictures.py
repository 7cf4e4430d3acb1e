"""Given pictures are cropped to squares, and every bad one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from spare_core.errors import ImagesError
from spare_core.files.pictures import load_images


def test_pictures_are_cropped_to_their_middle_square(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 10), (0, 0, 0))
    picture.paste((255, 255, 255), (10, 0, 20, 10))
    picture.save(tmp_path / "a.png")
    assert load_images(tmp_path, 8).mean() == pytest.approx(1.0)


def test_every_unreadable_picture_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    for name in ("torn.png", "text.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ImagesError, match=r"2 of 3 images.*text\.jpg.*torn\.png"):
        load_images(tmp_path, 8)


def test_what_macos_writes_beside_pictures_is_none_and_a_folder_below_is_named(tmp_path: Path) -> None:
    (tmp_path / "10_monet").mkdir()
    with pytest.raises(ImagesError, match="it holds the folder '10_monet': give that one"):
        load_images(tmp_path, 8)
    Image.new("RGB", (8, 8)).save(tmp_path / "10_monet" / "a.png")
    (tmp_path / "10_monet" / "._a.png").write_bytes(b"Mac OS X")
    (tmp_path / "10_monet" / "a.txt").write_text("a picture by Monet")
    assert len(load_images(tmp_path / "10_monet", 8)) == 1
