"""A pipeline directory whose denoiser's weights include an update: the base's files with a few byte ranges changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from spare_core.adapters.low_rank import DeltaUpdate, LowRankUpdate
from spare_core.errors import AdapterError, ModelError
from spare_core.models.digest import DTYPES, read_header, weight_files
from spare_core.models.files import ModelFiles

_DTYPES: Final = {name: getattr(torch, DTYPES[name]) for name in ("F64", "F32", "F16", "BF16")}
"""Types of weights that something can be added to."""
_DOCUMENTS: Final = (".json", ".txt", ".md", ".png", ".jpg", ".jpeg", ".webp", "")
"""Suffixes, beside a pipeline's components, of files that hold no weights."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes lie: in the safetensors file of this name, from ``start``."""

    file: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def merge(
    files: ModelFiles, updates: Mapping[str, LowRankUpdate | DeltaUpdate], folder: Path
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Copy a pipeline to the empty ``folder`` with W + Δ in place of W.

    Every other byte stays, dtype and shards too. Returns the :func:`squared_error` that rounding to that dtype makes in
    each layer, and the files that were not copied.

    Raises:
        AdapterError: if a layer is missing or has another shape.
        ModelError: if a weight is of a type that nothing can be added to.
    """
    denoiser = files.components[0]
    weights = weight_files(files.path / denoiser, files.variant)
    places = _find_places(weights, updates)
    left_out = _copy_others(files, folder) + _copy_denoiser(files.path / denoiser, weights, folder / denoiser)
    missed = {
        name: _add(folder / denoiser, places[name], update.delta().detach().float().cpu())
        for name, update in updates.items()
    }
    return missed, left_out


def squared_error(applied: Tensor, delta: Tensor) -> tuple[float, float]:
    """``‖applied - Δ‖²`` and ``‖Δ‖²`` of one layer, both tensors ``(out, in)``."""
    return float((applied - delta).double().square().sum()), float(delta.double().square().sum())


def _find_places(weights: Sequence[Path], updates: Mapping[str, LowRankUpdate | DeltaUpdate]) -> dict[str, _Place]:
    found: dict[str, _Place] = {}
    for file in weights:
        header, begin = read_header(file)
        for name in updates:
            entry = header.get(f"{name}.weight")
            if entry is None:
                continue
            if entry["dtype"] not in _DTYPES:
                allowed = ", ".join(_DTYPES)
                raise ModelError(f"{file}: {name} is stored as {entry['dtype']}; it must be one of {allowed}")
            start = begin + entry["data_offsets"][0]
            found[name] = _Place(file.name, start, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
    for name, update in updates.items():
        if name not in found:
            raise AdapterError(f"layer {name} is not in the model {weights[0].parent}; the adapter is for another one")
        if found[name].shape != update.shape:
            raise AdapterError(f"layer {name}: the update is {update.shape}, the model's weight {found[name].shape}")
    return found


def _add(folder: Path, place: _Place, delta: Tensor) -> tuple[float, float]:
    """Add ``delta`` ``(out, in)`` to one weight where it lies; returns the error of what that comes to."""
    with (folder / place.file).open("rb+") as file:
        file.seek(place.start)
        content = bytearray(file.read(delta.numel() * place.dtype.itemsize))
        base = torch.frombuffer(content, dtype=place.dtype).reshape(place.shape)
        merged = (base.double() + delta.double()).to(place.dtype)
        file.seek(place.start)
        file.write(merged.view(torch.uint8).numpy().tobytes())
    return squared_error(merged.double() - base.double(), delta)


def _copy_others(files: ModelFiles, folder: Path) -> list[str]:
    """Copy the other components and the documents beside them; returns what was left out.

    A whole checkpoint beside the components still holds what the merge erases: only what is known to be harmless goes.
    """
    index = json.loads((files.path / "model_index.json").read_text(encoding="utf-8"))
    components = {name for name, classes in index.items() if isinstance(classes, list) and any(classes)}
    left_out = []
    for item in sorted(files.path.iterdir()):
        if item.is_dir() and item.name in components:
            if item.name != files.components[0]:
                shutil.copytree(item, folder / item.name)
        elif item.is_file() and item.suffix in _DOCUMENTS:
            shutil.copyfile(item, folder / item.name)
        else:
            left_out.append(item.name)
    return left_out


def _copy_denoiser(component: Path, weights: Sequence[Path], folder: Path) -> list[str]:
    """Copy the denoiser's configuration and ``weights``; returns what was left out.

    Other variants of the weights would load without a word, and nothing would be erased: none goes along.
    """
    folder.mkdir()
    left_out = []
    for item in sorted(component.iterdir()):
        if item in weights or item.suffix == ".json":
            shutil.copyfile(item, folder / item.name)
        else:
            left_out.append(f"{component.name}/{item.name}")
    return left_out
