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
