"""What is asked for, checked: erasures with their settings, on a base model and pictures that are known by digest.

Every stage works on one request; what it writes says which (:mod:`spare_core.runs.stage_files`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spare_core.canvas.erasures import canvas_erasure
from spare_core.concepts.concept import DEFAULTS, KINDS, Erasure, Kind, bare_name
from spare_core.concepts.erasures import Erasures
from spare_core.errors import ConceptError, ImagesError, SettingsError
from spare_core.files.pictures import load_images
from spare_core.method.settings import EraseSettings, read_yaml
from spare_core.models.files import find_model
from spare_core.store.fetching import local_path

ROW: Final[Mapping[str, type]] = {
    "concept": str, "surrogate": str, "kind": str, "keep": list, "template": str, "contexts": list, "aliases": list,
}  # fmt: skip
"""What a request of a list may say; as the options of ``spare erase``."""

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Request:
    """``model`` and ``images`` say where base model and pictures lie; ``base`` and ``images_digest`` what they are."""

    model: str
    base: str
    erasures: Erasures
    settings: EraseSettings
    images: str | None = None
    images_digest: str | None = None

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
        """Of the identity."""
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
        return dataclasses.replace(cls(**values), erasures=erasures, settings=settings)

    def local_images(self) -> Path | None:
        """The folder of pictures, fetched if it lies in S3."""
        return local_path(self.images) if self.images else None


def build_erasure(
    model: str,
    concept: str,
    surrogate: str,
    kind: Kind | None = None,
    keep: Sequence[str] = (),
    template: str | None = None,
    contexts: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
) -> Erasure:
    """An erasure with the defaults of its model: Canvas knows its grid, every other model gets its kind's defaults.

    Raises:
        ConceptError: see :class:`Erasure`; on Canvas also for a name outside its grid.
    """
    if model == "canvas" and template is None and contexts is None:
        return canvas_erasure(concept, surrogate, kind, keep, aliases)
    if kind not in DEFAULTS:
        raise ConceptError(f"say what {concept!r} is, --kind {', '.join(KINDS)}; got {kind!r}")
    defaults = DEFAULTS[kind]
    used = template or defaults.template
    if contexts is None:
        contexts = defaults.contexts if "{context}" in used else ()
    if not keep:
        erased = [bare_name(name) for name in (concept, *aliases)]
        keep = [name for name in defaults.keep if bare_name(name) not in erased]
    return Erasure(concept, surrogate, kind, tuple(keep), used, tuple(contexts), tuple(aliases))


def build_erasures(model: str, rows: Sequence[Any]) -> Erasures:
    """From one mapping a concept, with :data:`ROW`'s names, of which ``concept`` and ``surrogate`` must be there.

    Raises:
        SettingsError: with all that is wrong in any row.
        ConceptError: for a concept that is erased twice, or that another row asks to keep, and for surrogates in a
            circle.
    """
    parts, problems = [], []
    for number, row in enumerate(rows, 1):
        found = _row_problems(row)
        if not found:
            try:
                parts.append(build_erasure(model, **row))
            except ConceptError as error:
                found = [str(error)]
        problems += [f"request {number}: {problem}" if len(rows) > 1 else problem for problem in found]
    if problems:
        raise SettingsError(problems)
    erasures = Erasures(*parts)
    check_kept(rows, erasures)
    return erasures


def check_kept(rows: Sequence[Mapping[str, Any]], erasures: Erasures) -> None:
    """Refuse rows that ask by name to keep what is erased.

    Raises:
        ConceptError: naming the first.
    """
    for number, row in enumerate(rows, 1):
        erased = [name for name in row.get("keep") or () if erasures.erased(name)]
        if erased:
            raise ConceptError(
                f"request {number}, {row['concept']!r}, keeps {', '.join(map(repr, erased))}, which another erases; "
                "remove it from one side"
            )


def read_rows(source: str | Path) -> list[Any]:
    """The list in a YAML file, here or in S3, for :func:`build_erasures`.

    Raises:
        SettingsError: if it cannot be read or holds something else.
        StoreError: if it cannot be fetched.
    """
    rows = read_yaml(source)
    if not isinstance(rows, list) or not rows:
        raise SettingsError([f"{source} must hold a list of requests, as in '- {{concept: Cat, surrogate: Dog}}'"])
    return rows


def _row_problems(row: Any) -> list[str]:
    if not isinstance(row, Mapping):
        return [f"it is {row!r}; it must map names to values, as in {{concept: Cat, surrogate: Dog}}"]
    problems = [f"unknown name {name!r}; known: {', '.join(ROW)}" for name in row if name not in ROW]
    problems += [f"{name} is missing" for name in ("concept", "surrogate") if name not in row]
    for name in row.keys() & ROW.keys():
        value = row[name]
        texts = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        if not (texts if ROW[name] is list else isinstance(value, str)):
            problems.append(f"{name} is {value!r}; it must be {'a list of texts' if ROW[name] is list else 'text'}")
    return problems


def check_images(images: str | Path | None, erasures: Erasures) -> None:
    """Refuse pictures that nobody could tell of which concept they are.

    Raises:
        ImagesError: if there are several.
    """
    if images and len(erasures) > 1:
        raise ImagesError(f"{images} shows one concept, but {len(erasures)} are erased; erase that one by itself")


def check_room(erasures: Erasures, settings: EraseSettings) -> None:
    """Refuse a rank that cannot hold all names.

    The change that overwrites a name has about one direction in each layer. On Canvas the worst residual of 12 names is
    0.06 at a rank of 12 or more, 0.25 at 8 and 0.49 at 6 (benchmarks/RESULTS.md).

    Raises:
        SettingsError: if there are more names than ranks.
    """
    names = sum(len(part.names) for part in erasures)
    if erasures.bundle and names > settings.rank:
        raise SettingsError([
            f"rank is {settings.rank}, but {names} names are to be erased, each of which takes about one; give a rank "
            f"of {names} or more, with room for those to come"
        ])  # fmt: skip


def build_request(
    model: str,
    erasures: Erasures,
    settings: EraseSettings,
    images: str | Path | None = None,
    progress: Progress = lambda stage, done, total: None,
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
    load_images(folder, 8)
    hasher = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            hasher.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()
