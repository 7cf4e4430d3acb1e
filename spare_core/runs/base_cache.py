"""What is known of a base model whatever is erased from it, kept beside what was fetched from S3: the moments of its
texts, its pictures of a suite, its predictions.

A file that is damaged counts as none, with a warning: a cache costs time, never a result.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spare_core.adapters.manifest import versions
from spare_core.errors import StorageError
from spare_core.files.atomic import read_tensors, write_tensors
from spare_core.models.denoiser import Denoiser
from spare_core.store.cache import cache_folder


def cache_key(denoiser: Denoiser, facts: Mapping[str, Any]) -> str:
    """sha256 of ``facts`` and of what else decides what this machine computes."""
    common = {"device": denoiser.device.type, "versions": versions(("torch", "diffusers", "transformers"))}
    return hashlib.sha256(json.dumps({**facts, **common}, sort_keys=True).encode()).hexdigest()


def default_folder(name: str) -> Path | None:
    """The cache's folder of that name; None for a user without a home, as containers may have."""
    try:
        return cache_folder() / name
    except StorageError:
        return None


def read_kept(folder: Path | None, key: str) -> dict[str, Tensor] | None:
    """What is kept there under that key, if it is whole."""
    if folder is None or not (path := _path(folder, key)).is_file():
        return None
    try:
        tensors, metadata = read_tensors(path)
        if json.loads(metadata.get("check", "{}")) == {"key": key, "sha256": _content_digest(tensors)}:
            return tensors
        reason = "its content is not what was written"
    except (OSError, ValueError, TypeError) as error:
        reason = str(error)
    warnings.warn(f"{path} is damaged ({reason}); what it held is made again", stacklevel=3)
    return None


def keep(folder: Path | None, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep ``tensors`` there; a disk that would not take them is only warned of."""
    if folder is None:
        return
    check = json.dumps({"key": key, "sha256": _content_digest(tensors)})
    try:
        write_tensors(_path(folder, key), {**tensors}, {"check": check})
    except StorageError as error:
        warnings.warn(f"what the base model does is not kept for the next time: {error}", stacklevel=3)


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _content_digest(tensors: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
