"""A base model as files: where it is, whether it is safe and complete, and the digest that names its weights."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError, safe_open

from spare_core import built_in
from spare_core.errors import ModelError
from spare_core.files.addresses import is_s3
from spare_core.models.digest import ARCHITECTURES, VARIANTS, WANTED, Entry, digest, entries, plain_name, weight_files
from spare_core.models.promises import check_promises
from spare_core.store.fetching import local_path

if TYPE_CHECKING:
    import torch

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class ModelFiles:
    """A checked diffusers directory; ``variant`` is the file variant to load ("fp16") or None."""

    source: str
    path: Path
    pipeline_class: str
    variant: str | None

    @property
    def components(self) -> tuple[str, ...]:
        """The components that hold the denoiser's and the text encoders' weights."""
        return ARCHITECTURES[self.pipeline_class]

    def weight_files(self, component: str) -> list[Path]:
        """The files that hold a component's weights."""
        return weight_files(self.path / component, self.variant)

    def tensors(self, component: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor of a component under its file-independent name, read one at a time."""
        for file in self.weight_files(component):
            with _readable(file), safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                    yield plain_name(name), opened.get_tensor(name)

    def digest(self) -> str:
        """The digest of these weights, see :func:`spare_core.models.digest.digest`."""
        return digest((component, self._entries(component)) for component in self.components)

    def _entries(self, component: str) -> Iterator[Entry]:
        for file in self.weight_files(component):
            with _readable(file):
                yield from entries(file)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file in an error of safetensors."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}); fetch it again") from None


def check_source(source: str) -> None:
    """Refuse what cannot be a model, as far as this machine can tell without fetching anything.

    Raises:
        ModelError: if ``source`` names no built-in model, no usable local directory, no address and no hub id.
    """
    if not is_s3(source) and not _on_hub(source):
        find_model(source)


def find_model(source: str, on_progress: Callable[[int, int], None] = lambda done, total: None) -> ModelFiles:
    """The checked files of ``source``: a built-in model's name, a local diffusers directory, ``s3://bucket/prefix``, or
    a hub id.

    ``on_progress`` is called with the bytes fetched from S3 and the bytes there are.

    Raises:
        ModelError: if there is no such model, it is no supported diffusers pipeline, or its weights are pickles.
        StoreError: if it cannot be fetched from S3.
    """
    if (known := built_in.find(source)) is not None:
        return _check(source, known.pipeline)
    if is_s3(source):
        path = local_path(source, WANTED, on_progress)
        try:
            return _check(source, path)
        except ModelError as error:
            raise ModelError(f"model {source!r}: {error}") from None
    if _exists(source):
        return _check(source, Path(source))
    if _on_hub(source):
        return _check(source, _download(source))
    raise ModelError(
        f"there is no model {source!r}; give {' or '.join(map(repr, built_in.names()))}, a local diffusers directory, "
        "s3://bucket/prefix, or a hub id 'org/name'"
    )


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError as error:
        raise ModelError(f"model {source[:60]!r}… is no usable path: {error.strerror}") from None


def _on_hub(source: str) -> bool:
    """Whether ``source`` can only be a hub id."""
    return not _exists(source) and HUB_ID.fullmatch(source) is not None and not source.startswith((".", "/"))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*WANTED]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{hub_id!r} is no local directory, and the hub did not give it ({reason}); check the name, the network "
            "and the HF_TOKEN environment variable"
        ) from None


def _check(source: str, path: Path) -> ModelFiles:
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{path} is not a diffusers pipeline directory: it has no model_index.json")
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        pipeline_class = listed["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{index} does not name a pipeline class; is the download complete?") from None
    if not isinstance(pipeline_class, str) or pipeline_class not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise ModelError(f"{path} holds a {pipeline_class}; supported: {allowed}")
    variants = {_variant(path / part) for part in (*ARCHITECTURES[pipeline_class], "vae")}
    if None in variants and len(variants) > 1:
        raise ModelError(f"{path} holds some components only as fp16 variant and others only without; fetch one kind")
    check_promises(path, pipeline_class)
    return ModelFiles(source, path, pipeline_class, variants.pop())


def _variant(folder: Path) -> str | None:
    """None for plain weights, "fp16" where only that variant is there."""
    for variant in VARIANTS:
        if weight_files(folder, variant):
            return variant
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
    if pickles:
        raise ModelError(f"{folder} holds {pickles[0]}, a pickle; only safetensors are read, convert it first")
    raise ModelError(f"{folder} holds no safetensors weights; is the download complete?")
