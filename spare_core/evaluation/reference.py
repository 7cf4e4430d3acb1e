"""Real pictures that FID is measured against: those a judge came with, or a folder STYLE/OBJECT/*.jpg."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spare_core.concepts.names import normalise
from spare_core.errors import ImagesError
from spare_core.evaluation.judgement import Judge, Reference
from spare_core.evaluation.suite import Suite

_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_BATCH: Final = 256
_SIDE: Final = 512
"""UnlearnCanvas's pictures are squares of at least this; judges make them smaller still."""


def load_reference(suite: Suite, judge: Judge) -> tuple[Reference | None, dict[str, Any] | None]:
    """The reference, and the judge's own accuracy where it is known: its own record, or measured on the folder.

    Of each cell of a folder, the first pictures by number are taken, as many as the suite has seeds (UnlearnCanvas
    takes five).

    Raises:
        ImagesError: if the folder holds no picture of the suite's concepts, or one that cannot be read.
    """
    accuracy = dict(judge.accuracy) if judge.accuracy is not None else None
    if suite.reference is None:
        return judge.reference, accuracy
    files = list(_files(suite, suite.reference))
    if not files:
        raise ImagesError(f"{suite.reference} holds no pictures STYLE/OBJECT/* of suite {suite.name!r}")
    features, hits = [], torch.zeros(2)
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        judged = judge.judge(torch.stack([_read(file) for file, _, _ in batch]))
        features.append(judged.features)
        hits[0] += (judged.objects.predicted == torch.tensor([obj for _, obj, _ in batch])).sum()
        hits[1] += (judged.styles.predicted == torch.tensor([style for _, _, style in batch])).sum()
    objects, styles = (torch.tensor([row[i] for row in files]) for i in (1, 2))
    shares = (hits / len(files)).tolist()
    measured = {"reference": {"objects": shares[0], "styles": shares[1]}}
    return Reference(torch.cat(features), objects, styles), {**(accuracy or {}), **measured}


def _files(suite: Suite, folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Pictures with the rows of their object and style, cell by cell."""
    for style_row, style_folder in _matched(folder, suite.styles):
        for object_row, cell in _matched(style_folder, suite.objects):
            pictures = sorted((file for file in cell.iterdir() if file.suffix.lower() in _SUFFIXES), key=_by_number)
            for file in pictures[: len(suite.seeds)]:
                yield file, object_row, style_row


def _matched(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[int, Path]]:
    folders = {normalise(path.name.replace("_", " ")): path for path in sorted(folder.iterdir()) if path.is_dir()}
    for row, name in enumerate(names):
        if (found := folders.get(normalise(name.replace("_", " ")))) is not None:
            yield row, found


def _by_number(file: Path) -> list[tuple[int, str]]:
    """2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.stem)]


def _read(file: Path) -> Tensor:
    """RGB ``(3, 512, 512)`` in [0, 1]."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImagesError(f"{file} cannot be read: {error}") from None
    return torch.from_numpy(pixels / 255.0).permute(2, 0, 1)
