"""What is asked for, checked: erasures with their settings, on a base model and pictures that are known by digest.

Every stage works on one request; what it writes says which (:mod:`spare_core.runs.stage_files`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spare_core.concepts.erasures import Erasures
from spare_core.errors import ImagesError, SettingsError
from spare_core.method.settings import EraseSettings
from spare_core.models.files import find_model
from spare_core.runs.progress import OnProgress, no_progress
from spare_core.store.fetching import local_path


@dataclass(frozen=True)
class Request:
    """``model`` and ``images`` say where base model and pictures lie; ``base`` and ``images_digest`` what they are. A
    rank that is to be chosen is chosen here, so that every manifest and identity has the number."""

    model: str
    base: str
    erasures: Erasures
    settings: EraseSettings
    images: str | None = None
    images_digest: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", self.settings.for_names(len(self.erasures.names)))

    def identity(self) -> dict[str, Any]:
        """All that decides the result, as ``spare.json`` records it; not where things lie."""
        return {
            **self.erasures.as_dict(),
            **self.settings.as_dict(),
            "base": self.base,
            "images": self.images_digest,
        }

    @property
    def sha256(self) -> str:
        """sha256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "base": self.base,
            "erasures": self.erasures.as_dict(),
            "settings": self.settings.as_dict(),
            "images": self.images,
            "images_digest": self.images_digest,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """The inverse of :meth:`as_dict`."""
        erasures = Erasures.of(values["erasures"])
        settings = EraseSettings.from_mapping(values["settings"])
        return cls(**{**values, "erasures": erasures, "settings": settings})

    def local_images(self) -> Path | None:
        """The folder of pictures, fetched if it lies in S3."""
        return local_path(self.images) if self.images else None


def check_images(images: str | Path | None, erasures: Erasures) -> None:
    """Refuse pictures that nobody could tell of which concept they are.

    Raises:
        ImagesError: if there are several.
    """
    if images and len(erasures) > 1:
        raise ImagesError(f"{images} shows one concept, but {len(erasures)} are erased; erase that one by itself")


def check_room(erasures: Erasures, settings: EraseSettings) -> None:
    """Refuse a given rank that cannot hold all names; one that is chosen can.

    The change that overwrites a name has about one direction in each layer. On Canvas the worst residual of 12 names is
    0.06 at a rank of 12 or more, 0.25 at 8 and 0.49 at 6 (benchmarks/RESULTS.md).

    Raises:
        SettingsError: if there are more names than ranks.
    """
    names = len(erasures.names)
    if erasures.bundle and settings.rank != "auto" and names > settings.rank:
        raise SettingsError([
            f"rank is {settings.rank}, but {names} names are to be erased, each of which takes about one; leave "
            f"it to auto, or give a rank of {names} or more, with room for those to come"
        ])  # fmt: skip


def build_request(
    model: str,
    erasures: Erasures,
    settings: EraseSettings,
    images: str | Path | None = None,
    progress: OnProgress = no_progress,
) -> Request:
    """Find base model and pictures and name them by digest; both are fetched if they lie in S3.

    Raises:
        InputError: for what is not there or cannot be used, before any work.
        StoreError: if model or images cannot be fetched.
    """

    def fetching(done: int, total: int) -> None:
        progress("fetch (MiB)", done >> 20, total >> 20)

    files = find_model(model, fetching)
    check_images(images, erasures)
    check_room(erasures, settings)
    digest = images_digest(local_path(images, on_progress=fetching)) if images else None
    return Request(model, files.digest(), erasures, settings, None if images is None else str(images), digest)


def images_digest(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's images; all are decoded, so that a bad one is refused now."""
    from spare_core.files.pictures import load_images  # only here: checking any other request needs no torch

    load_images(folder, 8)
    hasher = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            hasher.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()
