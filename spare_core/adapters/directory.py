"""An adapter on disk.

A directory with ``spare.json`` and either ``pytorch_lora_weights.safetensors`` (module and channel masks: a plain LoRA
that stock diffusers loads) or ``sparse_delta.safetensors`` (weight masks: the exact values). ``spare.json`` is written
last, so a directory that has one is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.low_rank import Adapter, DeltaUpdate, LowRankUpdate
from spare_core.adapters.manifest import LORA, MANIFEST, SCHEMA, SPARSE, sha256_in, verified_manifest, versions
from spare_core.errors import AdapterError, ModelError
from spare_core.files.atomic import read_tensors, write_json, write_tensors

_LEAST_DENSE: Final = 1_000_000
"""A sparse delta changes one weight in so many at least, of those that its layers have: fewer would erase nothing."""
_SMALL: Final = 2**26
"""So many weights more than that (a quarter of a GiB) are believed of any file."""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter read from ``folder``, with what its ``spare.json`` says."""

    folder: Path
    manifest: dict[str, Any]
    adapter: Adapter

    @property
    def base_digest(self) -> str:
        """Digest of the base model it was trained for."""
        return str(self.manifest["base"]["digest"])

    @property
    def sha256(self) -> str:
        """sha256 of the weights file."""
        return sha256_in(self.manifest)


def save_adapter(folder: Path, adapter: Adapter, prefix: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the weights, then ``spare.json``; returns what was written to the latter."""
    updates = adapter.updates
    sparse = any(isinstance(u, DeltaUpdate) or u.entries is not None for u in updates.values())
    name = SPARSE if sparse else LORA
    tensors = sparse_tensors(updates) if sparse else lora_tensors(updates, prefix)
    write_tensors(folder / name, tensors, {"format": "pt"})
    content = (folder / name).read_bytes()
    files = {name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    written = {"schema": SCHEMA, **manifest, "versions": versions(), "files": files}
    write_json(folder / MANIFEST, written)
    return written


def lora_tensors(updates: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """PEFT-named LoRA tensors, float32. The scale is folded into B, so alpha equals the rank and needs no storing."""
    tensors = {}
    for name, update in updates.items():
        tensors[f"{prefix}.{name}.lora_A.weight"] = update.down.detach().float()
        tensors[f"{prefix}.{name}.lora_B.weight"] = update.up.detach().float() * update.scale
    return tensors


def sparse_tensors(updates: Mapping[str, Any]) -> dict[str, Tensor]:
    """For each layer ``indices`` into the flattened weight, ascending, ``values`` float32, and its ``shape``."""
    tensors = {}
    for name, update in updates.items():
        delta = update.delta().detach().float().cpu().reshape(-1)
        indices = delta.nonzero().reshape(-1)
        tensors[f"{name}.indices"] = indices if len(delta) >= 2**31 else indices.int()
        tensors[f"{name}.values"] = delta[indices]
        tensors[f"{name}.shape"] = torch.tensor(update.shape)
    return tensors


def load_adapter(folder: Path) -> StoredAdapter:
    """Read an adapter directory, checking every digest.

    Raises:
        AdapterError: if it is no adapter, was changed since it was written, or holds no update.
    """
    manifest = verified_manifest(folder)
    if LORA in manifest["files"]:
        adapter = _from_lora(_tensors(folder / LORA), folder)
    else:
        adapter = _from_sparse(_tensors(folder / SPARSE), folder)
    if not adapter.updates:
        raise AdapterError(f"{folder} holds no update of any layer; it would silently do nothing")
    return StoredAdapter(folder, manifest, adapter)


def load_adapters(folders: Sequence[Path], digest: str | None, source: str) -> list[StoredAdapter]:
    """Read adapter directories that go together on the base model of a ``digest``, which is called ``source``; None:
    whatever they were trained for.

    Raises:
        AdapterError: as :func:`load_adapter`.
        ModelError: as :func:`check_base`.
    """
    stored = [load_adapter(folder) for folder in folders]
    if digest is not None:
        for one in stored:
            check_base(one, digest, source)
    return stored


def check_base(stored: StoredAdapter, digest: str, source: str) -> None:
    """Refuse an adapter that was trained for another base model.

    Raises:
        ModelError: naming both digests.
    """
    if stored.base_digest != digest:
        raise ModelError(
            f"{stored.folder} was trained for the base model {stored.base_digest[:12]}…, but {source!r} is "
            f"{digest[:12]}…; give that base, or --any-base to try all the same"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)[0]
    except OSError as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {error}") from None


def _from_lora(tensors: dict[str, Tensor], folder: Path) -> Adapter:
    updates = {}
    for key, down in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        stem = key.removesuffix(".lora_A.weight")
        up = tensors.get(f"{stem}.lora_B.weight")
        if up is None or up.shape[1] != down.shape[0]:
            raise AdapterError(f"{folder / LORA}: {key} has no matching lora_B")
        mask = LayerMask(up.ne(0).any(dim=1), down.ne(0).any(dim=0))
        updates[stem.partition(".")[2]] = LowRankUpdate(down, up, 1.0, mask)
    if 2 * len(updates) != len(tensors):
        raise AdapterError(f"{folder / LORA} holds {len(tensors) - 2 * len(updates)} tensors that are no LoRA pairs")
    return Adapter(updates)


def _from_sparse(tensors: dict[str, Tensor], folder: Path) -> Adapter:
    names = [key.removesuffix(".shape") for key in tensors if key.endswith(".shape")]
    room = _LEAST_DENSE * sum(len(tensor) for key, tensor in tensors.items() if key.endswith(".values")) + _SMALL
    if tensors.keys() != {f"{name}.{part}" for name in names for part in ("indices", "values", "shape")}:
        raise AdapterError(f"{folder / SPARSE} holds tensors that are no sparse delta")
    updates = {}
    for name in names:
        indices, values, shape = (tensors[f"{name}.{part}"] for part in ("indices", "values", "shape"))
        if shape.shape != (2,) or shape.min() < 1 or indices.ndim != 1 or indices.shape != values.shape:
            raise AdapterError(f"{folder / SPARSE}: layer {name} has a shape, places and values that do not fit")
        rows, columns = shape.tolist()
        room -= rows * columns
        if room < 0:
            raise AdapterError(
                f"{folder / SPARSE}: its layers have so many more weights than it changes that it erases nothing, "
                f"and is not read: layer {name} is {(rows, columns)}"
            )
        indices = indices.long()
        if len(indices) and not (indices.min() >= 0 and indices.max() < rows * columns):
            raise AdapterError(f"{folder / SPARSE}: layer {name} has places outside its weight {(rows, columns)}")
        flat = torch.zeros(rows * columns)
        flat[indices] = values
        updates[name] = DeltaUpdate(flat.reshape(rows, columns))
    return Adapter(updates)
