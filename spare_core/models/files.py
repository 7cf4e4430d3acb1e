"""A base model as files: where it is, whether it is safe and complete, and the digest that names its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from safetensors import SafetensorError, safe_open

from spare_core import built_in
from spare_core.errors import ModelError
from spare_core.files.addresses import is_s3
from spare_core.models.checkpoint.convert import as_directory, check_checkpoint
from spare_core.models.digest import (
    ARCHITECTURES,
    WANTED,
    Entry,
    common_variant,
    digest,
    entries,
    of_one_variant,
    plain_name,
    read_header,
    variants,
    weight_files,
)
from spare_core.models.hub import download, hub_model, is_here
from spare_core.models.promises import check_promises
from spare_core.store.fetching import local_path

if TYPE_CHECKING:
    import torch

_SHARD: Final = re.compile(r"-\d+-of-\d+$")
_PACKED: Final = ("I8", "U8", "U16", "U32", "I16")
"""Types that quantized weights come in; whole numbers of 32 bits and more are places of tokens."""
_COMPONENT: Final = re.compile(r"[A-Za-z0-9_]+")
_TEXTS: Final = (".json", ".txt", ".model")
_WITHOUT_WEIGHTS: Final = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "FeatureExtractor")
"""How the classes of a pipeline's parts end that are no networks."""
_SINGLE: Final = ".safetensors"
_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelFiles:
    """A checked diffusers directory; ``variant`` is the file variant to load ("fp16") or None; ``index`` what its
    model_index.json says; ``revision`` the commit that a hub has it of."""

    source: str
    path: Path
    pipeline_class: str
    variant: str | None
    index: Mapping[str, Any]
    revision: str | None = None

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

    def present(self) -> list[str]:
        """Components that the index lists and that are here, with safetensors if they are networks."""
        return [
            name
            for name in self._listed
            if (self.path / name).is_dir()
            and (str(self.index[name][1]).endswith(_WITHOUT_WEIGHTS) or variants(self.path / name))
        ]

    def absent(self) -> list[str]:
        """The others that it lists: a safety checker, say, that was never fetched or is a pickle. The pipeline that we
        load has none of them, and a stock tool would fail at the one and read the other."""
        present = self.present()
        return [name for name in self._listed if name not in present]

    @property
    def _listed(self) -> list[str]:
        return [name for name, kind in self.index.items() if isinstance(kind, list) and all(kind)]

    def present_index(self) -> str:
        """The content of a model_index.json that lists only what is here: what a copy of the files needs to load."""
        gone = self.absent()
        index = {**self.index, **{name: [None, None] for name in gone}}
        if "safety_checker" in gone:
            index["requires_safety_checker"] = False
        return json.dumps(index, indent=2) + "\n"

    def plain_files(self, component: str) -> Iterator[tuple[str, Path | str]]:
        """What a copy of a component needs, under the names that are looked for where nobody names a variant: its
        configuration and vocabulary, and the weights that are loaded. An index is written anew, as text."""
        folder = self.path / component
        weights = weight_files(folder, self.variant) or [
            file for variant in variants(folder)[:1] for file in weight_files(folder, variant)
        ]
        for file in weights:
            yield _without_variant(file.name), file
        if len(weights) > 1:
            index = weights[0].with_name(f"{_stem(weights[0])}.safetensors.index.json")
            if self.variant:
                places = {name: _without_variant(file.name) for file in weights for name in read_header(file)[0]}
                yield index.name, json.dumps({"metadata": {}, "weight_map": places}, indent=2)
            else:
                yield index.name, index
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix in _TEXTS and ".safetensors.index." not in file.name:
                yield file.name, file

    def digest(self) -> str:
        """The digest of these weights, see :func:`spare_core.models.digest.digest`."""
        return digest((component, self._entries(component)) for component in self.components)

    @cached_property
    def decoder_digest(self) -> str:
        """sha256 of the parts that :meth:`digest` leaves out though they shape pictures: VAE and noise schedule."""
        import torch  # only here: what checks a model before any work does without it

        hasher = hashlib.sha256()
        for name, tensor in sorted(self.tensors("vae"), key=lambda item: item[0]):
            hasher.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name in ("vae/config.json", "scheduler/scheduler_config.json"):
            path = self.path / name
            hasher.update(path.read_bytes() if path.is_file() else b"")
        return hasher.hexdigest()

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
    """Refuse what cannot be a model, as far as this machine can tell without fetching or converting anything.

    Raises:
        ModelError: if ``source`` names no built-in model, nothing usable on this machine, no address and no hub id.
    """
    if is_s3(source) or hub_model(source) is not None:
        return
    if is_here(source) and Path(source).expanduser().is_file():
        _single_file(Path(source).expanduser(), check_checkpoint)
    else:
        find_model(source)


def find_model(source: str, on_progress: Callable[[int, int], None] = lambda done, total: None) -> ModelFiles:
    """The checked files of ``source``: a built-in model's name, a local diffusers directory or single file,
    ``s3://`` with either, or a hub id.

    ``on_progress`` is called with the bytes fetched from S3 and the bytes there are.

    Raises:
        ModelError: if there is no such model, it is no supported diffusers pipeline, or its weights are pickles.
        StoreError: if it cannot be fetched from S3.
    """
    if (known := built_in.find(source)) is not None:
        return _check(source, known.pipeline)
    if is_s3(source):
        single = source.endswith((_SINGLE, *_PICKLES))
        path = local_path(source, *((), on_progress) if single else (WANTED, on_progress, of_one_variant))
        try:
            return _check(source, path)
        except ModelError as error:
            raise ModelError(f"model {source!r}: {error}") from None
    if is_here(source):
        return _check(source, Path(source).expanduser())
    if (hub := hub_model(source)) is not None:
        path, commit = download(hub)
        return dataclasses.replace(_check(source, path), revision=commit)
    raise ModelError(
        f"there is no model {source!r}; give {' or '.join(map(repr, built_in.names()))}, a local diffusers directory "
        "or .safetensors file, s3://bucket/prefix, or a hub id 'org/name'"
    )


def _single_file(path: Path, use: Callable[[Path], _T]) -> _T:
    """What ``use`` makes of a model that is one file.

    Raises:
        ModelError: if it is no safetensors file.
    """
    if path.suffix in _PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code; only safetensors are read: take the .safetensors file that most "
            "models come as, too, or convert it where you trust it"
        )
    if path.suffix != _SINGLE:
        raise ModelError(f"{path} is neither a diffusers directory nor a {_SINGLE} file")
    whole = path.absolute().parents[1]
    if (whole / "model_index.json").is_file():
        raise ModelError(f"{path} is one part of the diffusers directory {whole}; give that")
    return use(path)


def _check(source: str, path: Path) -> ModelFiles:
    if path.is_file():
        path = _single_file(path, as_directory)
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{path} is not a diffusers pipeline directory: it has no model_index.json")
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        pipeline_class = listed["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{index} does not name a pipeline class; is the download complete?") from None
    if not isinstance(pipeline_class, str) or pipeline_class not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise ModelError(f"{path} holds a {pipeline_class}; supported: {allowed}")
    crooked = [name for name, kind in listed.items() if isinstance(kind, list) and len(kind) != 2]
    if crooked:
        raise ModelError(
            f"{index} says {json.dumps(listed[crooked[0]])} of {crooked[0]!r}; it takes a library and a class"
        )
    odd = [name for name, kind in listed.items() if isinstance(kind, list) and not _COMPONENT.fullmatch(name)]
    if odd:  # it is a folder's name here, and in every copy that is made
        raise ModelError(f"{index} names a component {odd[0]!r}; a name is made of letters, digits and underscores")
    parts = (*ARCHITECTURES[pipeline_class], "vae")
    for part in parts:
        if part in listed and not (isinstance(listed[part], list) and all(listed[part])):
            raise ModelError(
                f"{index} names no {part} ({json.dumps(listed[part])}): the model was published without; save the "
                "whole pipeline, with the one that it is used with"
            )
    for part in parts:
        _check_weights(path / part)
    try:
        chosen = common_variant(path / part for part in parts)
    except LookupError:
        kinds = "; ".join(f"{part}: {', '.join(map(_called, variants(path / part)))}" for part in parts)
        raise ModelError(f"{path} holds no variant of weights of all its parts ({kinds}); fetch one of all") from None
    check_promises(path, pipeline_class, ARCHITECTURES[pipeline_class][1:])
    files = ModelFiles(source, path, pipeline_class, chosen, listed)
    for part in parts:
        for file in files.weight_files(part):
            _check_readable(file)
    return files


def _check_readable(file: Path) -> None:
    """Refuse a file that is none, by its header, and numbers that stand for others by a scale that is kept elsewhere.

    Raises:
        ModelError: naming the file.
    """
    with _readable(file):
        header, _ = read_header(file)
    for name, entry in header.items():
        if entry["dtype"] in _PACKED:
            raise ModelError(
                f"{file}: {name!r} is stored as {entry['dtype']}: quantized weights cannot be erased from; give those "
                "they were made of"
            )


def _check_weights(folder: Path) -> None:
    """Refuse a component that has no weights, of any variant."""
    try:
        if variants(folder):
            return
    except ValueError as error:
        raise ModelError(str(error)) from None
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
    if pickles:
        raise ModelError(f"{folder} holds {pickles[0]}, a pickle; only safetensors are read, convert it first")
    raise ModelError(f"{folder} holds no safetensors weights; is the download complete?")


def _called(variant: str | None) -> str:
    return f"only as {variant}" if variant else "without a variant"


def _stem(file: Path) -> str:
    return file.name.partition(".")[0].partition("-")[0]


def _without_variant(name: str) -> str:
    """``model.fp16.safetensors`` as ``model.safetensors``, ``model.fp16-00001-of-00002.safetensors`` likewise."""
    stem, _, rest = name.removesuffix(".safetensors").partition(".")
    shard = _SHARD.search(rest)
    return f"{stem}{shard[0] if shard else ''}.safetensors"
