"""The digest that names a base model's weights, and which files they are in.

A copy of this file travels inside every registered adapter as ``spare_base_digest.py``, to check the base where it is
loaded: it needs nothing else of SPARE.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

ARCHITECTURES: Final = {
    "StableDiffusionPipeline": ("unet", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "text_encoder", "text_encoder_2"),
}
"""Supported pipelines, and the components whose weights the digest covers."""
WANTED: Final = ("model_index.json", "*/*.json", "*/*.txt", "unet/*.safetensors", "text_encoder*/*.safetensors",
                 "vae/*.safetensors")  # fmt: skip
"""What is fetched from a hub or from S3: no pickles, not the whole checkpoints that lie beside the components."""
DTYPES: Final = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
"""Names of safetensors' types in torch."""
_STEMS: Final = ("diffusion_pytorch_model", "model")
"""How diffusers calls the files of weights, and transformers."""
_NAME: Final = re.compile(
    rf"(?:{'|'.join(_STEMS)})(?:\.(?P<variant>[A-Za-z0-9_-]+?))?(?:-\d+-of-\d+)?\.safetensors"
    r"(?:\.index(?:\.(?P<of_index>[A-Za-z0-9_-]+))?\.json)?"
)
_AT_ONCE: Final = 8
"""Tensors that are hashed at once: as many as disks can be expected to keep up with."""
_SHARD: Final = re.compile(r"-\d+-of-\d+\.safetensors$")


def variants(folder: Path) -> list[str | None]:
    """The variants that a component's folder holds weights of, in the order in which they are preferred: None, which is
    loaded where nobody asks for another, fp16, then the others by name."""
    matches = (_NAME.fullmatch(file.name) for file in folder.glob("*.safetensors*"))
    found = {match["variant"] or match["of_index"] for match in matches if match}
    whole = {variant for variant in found if weight_files(folder, variant)}
    return sorted(whole, key=_preference)


def common_variant(folders: Iterable[Path]) -> str | None:
    """The variant that is loaded of a pipeline whose components lie in ``folders``: the first that all of them have.

    Raises:
        LookupError: if there is none.
        ValueError: see :func:`weight_files`.
    """
    each = [variants(folder) for folder in folders]
    return [one for one in each[0] if all(one in found for found in each)][0]  # noqa: RUF015 an error that is caught


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files that are loaded of one variant, whatever else lies beside them: the shards that an index
    names, or the one file. Where both are there, diffusers takes the shards and transformers the file.

    Raises:
        ValueError: if an index cannot be read, or names what is no file of the folder.
    """
    infix = f".{variant}" if variant else ""
    for stem in _STEMS:
        file, index = folder / f"{stem}{infix}.safetensors", folder / f"{stem}.safetensors.index{infix}.json"
        single = [file] if file.is_file() else []
        sharded = _shards(index) if index.is_file() and not (single and stem == "model") else []
        if sharded or single:
            return sharded or single
    return []


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of shards; fetch it again") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise ValueError(f"{index} names the shard {name!r}, which is not there; fetch it again")
    return [index.parent / name for name in names]


def of_one_variant(names: Iterable[str]) -> list[str]:
    """Of the names of a pipeline's files, as ``unet/model.safetensors``, those of the variant that is loaded: nobody
    fetches gigabytes of the others. All of them, where no variant is whole, so that it is told what is there."""
    listed, parts = [*names], dict[str, dict[str, str | None]]()
    for name in listed:
        part, _, file = name.rpartition("/")
        if part in ("unet", "vae") or part.startswith("text_encoder"):
            match = _NAME.fullmatch(file)
            if match:
                parts.setdefault(part, {})[name] = match["variant"] or match["of_index"]
    whole = [
        {variant for name, variant in files.items() if not _SHARD.search(name)}  # one file, or the index of several
        for files in parts.values()
    ]
    common = set[str | None]().union(*whole[:1]).intersection(*whole)
    if not common:
        return listed
    chosen = min(common, key=_preference)
    return [name for name in listed if parts.get(name.rpartition("/")[0], {}).get(name, chosen) == chosen]


def wanted_of_hub(name: str, revision: str | None) -> list[str]:
    """What to fetch of a hub's model: the files of the variant that is loaded. Where the hub does not answer, the
    patterns of all: a copy that is here already is then found by them."""
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(name, revision=revision)
    except OSError:
        return [*WANTED]
    return of_one_variant(one for one in names if any(fnmatch.fnmatchcase(one, pattern) for pattern in WANTED))


def _preference(variant: str | None) -> tuple[bool, bool, str]:
    return variant is not None, variant != "fp16", variant or ""


def plain_name(name: str) -> str:
    """A tensor's name without the prefix that transformers 4 writes and transformers 5 leaves out."""
    return name.removeprefix("text_model.")


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file by tensor name (``dtype``, ``shape``, ``data_offsets``), and where the tensors
    begin in it.

    Raises:
        safetensors.SafetensorError: if the file is damaged or none.
        OSError: if it cannot be read.
    """
    with safe_open(file, "np"):  # the library's own checks of the whole header
        pass
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


Entry = tuple[str, str, list[int], str]


def entries(file: Path) -> Iterator[Entry]:
    """Each tensor of a safetensors file: its file-independent name, dtype as torch writes it, shape, and the sha256 of
    its bytes. The file is hashed as it lies on the disk, several tensors at once: nothing is loaded, and no torch is
    needed."""
    header, begin = read_header(file)
    if not header:
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def hashed(entry: dict[str, Any]) -> str:
            first, last = entry["data_offsets"]
            with memoryview(content) as view, view[begin + first : begin + last] as part:
                return hashlib.sha256(part).hexdigest()  # not under the interpreter's lock

        with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
            for (name, entry), sha256 in zip(header.items(), pool.map(hashed, header.values()), strict=True):
                yield plain_name(name), DTYPES[entry["dtype"]], entry["shape"], sha256


def digest(components: Iterable[tuple[str, Iterable[Entry]]]) -> str:
    """sha256 over the sorted (component, tensor name, dtype, shape, sha256 of bytes) of denoiser and text encoders.

    The same weights in another folder, or split into other files, have the same digest.
    """
    found = [(component, *entry) for component, tensors in components for entry in tensors]
    return hashlib.sha256(json.dumps(sorted(found), separators=(",", ":")).encode()).hexdigest()


def digest_of_folder(folder: Path) -> str:
    """The digest of a diffusers directory; of the first variant that it has weights of.

    Raises:
        OSError, LookupError, ValueError: if it is none of a supported kind.
    """
    pipeline_class = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    components = ARCHITECTURES[pipeline_class]
    variant = common_variant([folder / one for one in (*components, "vae")])
    files = {one: weight_files(folder / one, variant) for one in components}
    return digest((one, chain.from_iterable(map(entries, files[one]))) for one in components)
