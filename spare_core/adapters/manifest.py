"""What an adapter directory says of itself: ``spare.json``, schema ``spare.adapter/1``. Importing this needs no torch.

docs/reference/formats.md lists its fields.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from spare_core.errors import AdapterError

SCHEMA: Final = "spare.adapter/1"
MANIFEST: Final = "spare.json"
LORA: Final = "pytorch_lora_weights.safetensors"
SPARSE: Final = "sparse_delta.safetensors"
_VERSIONED: Final = ("spare-unlearning", "torch", "diffusers", "transformers", "peft", "safetensors")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked ``spare.json`` of an adapter directory.

    Raises:
        AdapterError: if there is none, it is not of this schema, or it names files that do not belong.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter directory {folder}")
    if not path.is_file():
        pickles = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
        hint = f"; it holds {pickles[0]}, a pickle, which is never read" if pickles else ""
        raise AdapterError(f"{folder} is not an adapter of ours: it has no {MANIFEST}{hint}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise AdapterError(f"{path} has schema {found!r}; this release reads {SCHEMA!r}")
    files, base = manifest.get("files"), manifest.get("base")
    if not isinstance(files, dict) or len(files) != 1 or not set(files) <= {LORA, SPARSE}:
        raise AdapterError(f"{path} must list exactly one of {LORA} and {SPARSE}; it is damaged or was edited")
    if not all(isinstance(facts, dict) and isinstance(facts.get("sha256"), str) for facts in files.values()):
        raise AdapterError(f"{path} does not say the sha256 of its file; it is damaged or was edited")
    if not isinstance(base, dict) or not isinstance(base.get("digest"), str):
        raise AdapterError(f"{path} does not say which base model it is for; it is damaged or was edited")
    return manifest


def check_file(path: Path, sha256: str) -> None:
    """Compare a file with its recorded digest.

    Raises:
        AdapterError: if it is missing or differs.
    """
    if not path.is_file():
        raise AdapterError(f"{path} is missing; fetch the adapter again")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise AdapterError(f"{path} has sha256 {found}, {MANIFEST} says {sha256}; it was changed or damaged")


def verified_manifest(folder: Path) -> dict[str, Any]:
    """The ``spare.json`` of an adapter directory whose weights file is as it says.

    Raises:
        AdapterError: see :func:`read_manifest` and :func:`check_file`.
    """
    manifest = read_manifest(folder)
    for name, facts in manifest["files"].items():
        check_file(folder / name, facts["sha256"])
    return manifest


def sha256_in(manifest: Mapping[str, Any]) -> str:
    """The sha256 of the weights file that a ``spare.json`` lists."""
    return str(next(iter(manifest["files"].values()))["sha256"])


def versions(names: Iterable[str] = _VERSIONED) -> dict[str, str]:
    """Installed releases of what made an artifact."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
