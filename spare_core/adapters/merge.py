"""A pipeline directory whose denoiser's weights include an update: the base's files with a few byte ranges changed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from spare_core.adapters.low_rank import DeltaUpdate, LowRankUpdate
from spare_core.errors import AdapterError, ModelError
from spare_core.models.digest import DTYPES, plain_name, read_header
from spare_core.models.files import ModelFiles, find_model
from spare_core.models.pipelines import load_as_users_do

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

    Every other byte of what is loaded stays, dtype and shards too. Returns the :func:`squared_error` that rounding to
    that dtype makes in each layer, and the files that were not copied.

    Raises:
        AdapterError: if a layer is missing or has another shape.
        ModelError: if a weight is of a type that nothing can be added to.
    """
    denoiser = files.components[0]
    _find_places(files.weight_files(denoiser), updates)  # before anything is copied
    left_out = _copy(files, folder)
    places = _find_places(find_model(str(folder)).weight_files(denoiser), updates)
    missed = {
        name: _add(folder / denoiser, places[name], update.delta().detach().float().cpu())
        for name, update in updates.items()
    }
    return missed, left_out


def check_merged(files: ModelFiles, updates: Mapping[str, LowRankUpdate | DeltaUpdate], folder: Path) -> None:
    """Load the merged pipeline by diffusers' own call with nothing but its path, and compare what is in memory then:
    W + Δ where there is an update, W everywhere else.

    Raises:
        ModelError: if it does not load, or is something else.
    """
    denoiser = files.components[0]
    _, first = next(iter(files.tensors(denoiser)))
    loaded = load_as_users_do(folder, first.dtype)
    for component in files.components:
        weights = {plain_name(name): tensor for name, tensor in getattr(loaded, component).state_dict().items()}
        for name, tensor in files.tensors(component):
            update = updates.get(name.removesuffix(".weight")) if component == denoiser else None
            if update is not None:
                delta = update.delta().detach().double().cpu()
                tensor = (tensor.double() + delta).to(tensor.dtype)
            found = weights.get(name)
            if found is not None and not torch.equal(found, tensor.to(found.dtype)):
                raise ModelError(
                    f"diffusers loads another {component} from what was written: weight {name!r} is not what it was "
                    "merged to. Nothing is left of it; please report this"
                )


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


def _copy(files: ModelFiles, folder: Path) -> list[str]:
    """Copy the components and the documents beside them, under names that load where nobody names a variant; returns
    what was left out.

    A whole checkpoint beside the components still holds what the merge erases, and so do other variants of the
    denoiser's weights, which would load without a word: only what is loaded, and what is known to be harmless, goes.
    """
    present, left_out = files.present(), []
    for component in present:
        left_out += _copy_component(files, component, folder / component)
    for item in sorted(files.path.iterdir()):
        if item.is_file() and item.suffix in _DOCUMENTS and item.name != "model_index.json":
            shutil.copyfile(item, folder / item.name)
        elif item.name not in (*present, "model_index.json"):
            left_out.append(item.name)
    (folder / "model_index.json").write_text(files.present_index(), encoding="utf-8")
    return left_out


def _copy_component(files: ModelFiles, component: str, folder: Path) -> list[str]:
    folder.mkdir()
    copied = set()
    for name, item in files.plain_files(component):
        if isinstance(item, Path):
            shutil.copyfile(item, folder / name)
            copied.add(item.name)
        else:
            (folder / name).write_text(item, encoding="utf-8")
            copied.add(name)
    return [
        f"{component}/{item.name}" for item in sorted((files.path / component).iterdir()) if item.name not in copied
    ]
