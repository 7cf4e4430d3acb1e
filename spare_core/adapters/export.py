"""An adapter in the forms other tools read: diffusers and kohya LoRA files, an exact sparse delta, a merged model.

======== ============================================ =========================================================
format   output                                       exact?
======== ============================================ =========================================================
diffusers directory: pytorch_lora_weights.safetensors yes; of a weight mask, a rank-r approximation
kohya    one file .safetensors (ComfyUI, A1111, …)    yes; of a weight mask, a rank-r approximation
sparse   directory: sparse_delta.safetensors          yes
merged   directory: a diffusers pipeline              to the rounding of the base's dtype
======== ============================================ =========================================================

What is not exact is reported with its relative error ``‖applied - Δ‖ / ‖Δ‖`` (Frobenius), measured on what is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from spare_core.adapters.card import CARD, model_card
from spare_core.adapters.directory import StoredAdapter, check_base, sparse_tensors
from spare_core.adapters.low_rank import DeltaUpdate, LowRankUpdate
from spare_core.adapters.manifest import LORA, SPARSE, check_file
from spare_core.adapters.merge import check_merged, merge, squared_error
from spare_core.adapters.modelspec import modelspec, split, with_metadata
from spare_core.errors import AdapterError, OutputError, SettingsError, StorageError
from spare_core.files.atomic import write_bytes, write_tensors
from spare_core.models.digest import ARCHITECTURES
from spare_core.models.files import find_model

FORMATS: Final = ("diffusers", "kohya", "sparse", "merged")
DEFAULT_RANK: Final = 16
_METADATA: Final = {"format": "pt"}  # a single key: safetensors orders several at random, and the bytes must not vary
_BASE_CARD: Final = "README.base.md"

Updates = dict[str, LowRankUpdate | DeltaUpdate]
Pairs = dict[str, tuple[Tensor, Tensor]]
"""For each layer A ``(r, in)`` and B ``(out, r)``, float32; the update is B A."""


def export_adapter(
    stored: StoredAdapter,
    format: str,
    output: Path,
    model: str | None = None,
    rank: int | None = None,
    any_base: bool = False,
) -> dict[str, Any]:
    """Write ``stored`` in ``format`` to ``output``, all or nothing.

    ``model``: the base, for "merged"; ``any_base`` merges into another one. ``rank``: of the approximation of a weight
    mask, at most that of the largest layer; None: 16.

    Folders get a model card, kohya's file a header that says what it is (ModelSpec). A merged model is loaded once as
    its user will, and compared weight by weight.

    Returns ``format``, ``path``, ``keys`` (tensors written; merged: weights changed), ``sha256`` (of the weights file;
    merged: the model's digest), ``adapter_sha256``, and ``relative_error``: None if exact, else ``overall``, ``worst``
    and ``worst_layer``; merged also ``left_out``, what was not copied because it may hold the base's own weights.

    Raises:
        SettingsError: for an unknown format, a rank where none belongs, or "merged" without a model.
        OutputError: if ``output`` exists, lies in the model's own directory, or has no .safetensors name for "kohya".
        AdapterError: if the adapter changes nothing, does not fit the model, or lacks what the format needs to know.
        ModelError: if ``model`` is not the adapter's base, or diffusers does not load what was merged as it is.
        StorageError: if the disk would not take it; nothing is left behind.
    """
    check_export(stored, format, output, model, rank)
    updates = changing_layers(stored)
    writers: dict[str, Callable[[], dict[str, Any]]] = {
        "diffusers": lambda: _export_diffusers(stored, updates, output, rank),
        "kohya": lambda: _export_kohya(stored, updates, output, rank),
        "sparse": lambda: _export_sparse(stored, output),
        "merged": lambda: _export_merged(stored, updates, output, str(model), any_base),
    }
    return {"format": format, "path": str(output), "adapter_sha256": stored.sha256, **writers[format]()}


def check_export(stored: StoredAdapter, format: str, output: Path, model: str | None, rank: int | None) -> None:
    """Refuse a request for an export that cannot be met.

    Raises:
        SettingsError, OutputError: see :func:`export_adapter`.
    """
    problems = []
    if format not in FORMATS:
        problems.append(f"format is {format!r}; allowed: {', '.join(FORMATS)}")
    if format == "merged" and not model:
        problems.append("format 'merged' needs the base model to merge into: give --model")
    approximates = format in ("diffusers", "kohya") and not _is_lora(stored)
    if rank is not None and not approximates:
        problems.append(f"rank is {rank}, but this export is exact; only LoRA files of a weight mask take a rank")
    elif rank is not None and rank < 1:
        problems.append(f"rank is {rank}; allowed: 1 or more")
    if problems:
        raise SettingsError(problems)
    if os.path.lexists(output):
        raise OutputError(f"{output} exists; nothing is ever overwritten, give a new --output")
    if format == "kohya" and output.suffix != ".safetensors":
        raise OutputError(f"{output} must end in .safetensors: tools find kohya LoRAs by that name")


def _is_lora(stored: StoredAdapter) -> bool:
    return LORA in stored.manifest["files"]


# LoRA files


def _export_diffusers(stored: StoredAdapter, updates: Updates, output: Path, rank: int | None) -> dict[str, Any]:
    component = ARCHITECTURES[_pipeline_class(stored)][0]
    with _creating(output) as folder:
        if _is_lora(stored):
            check_file(stored.folder / LORA, stored.sha256)
            write_bytes(folder / LORA, (stored.folder / LORA).read_bytes())
            keys, error = 2 * len(stored.adapter.updates), None
        else:
            pairs, error = low_rank_pairs(updates, rank)
            tensors = {f"{component}.{name}.lora_A.weight": down for name, (down, _) in pairs.items()}
            tensors |= {f"{component}.{name}.lora_B.weight": up for name, (_, up) in pairs.items()}
            write_tensors(folder / LORA, tensors, _METADATA)
            keys = len(tensors)
        _write_card(stored, folder, "diffusers", error)
    return {"keys": keys, "sha256": _sha256(output / LORA), "relative_error": error}


def _export_kohya(stored: StoredAdapter, updates: Updates, output: Path, rank: int | None) -> dict[str, Any]:
    names = kohya_names(stored)
    pairs, error = low_rank_pairs(updates, rank)
    tensors = {}
    for name, (down, up) in pairs.items():
        tensors[f"{names[name]}.lora_down.weight"] = down
        tensors[f"{names[name]}.lora_up.weight"] = up
        # Loaders scale by alpha / rank; the scale is in B already.
        tensors[f"{names[name]}.alpha"] = torch.tensor(float(len(down)))
    content = save(tensors)
    rank = max(len(down) for down, _ in pairs.values())
    described = modelspec(stored.folder, stored.manifest, rank, split(content)[1])
    write_bytes(output, with_metadata(content, described))
    return {"keys": len(tensors), "sha256": _sha256(output), "relative_error": error}


def low_rank_pairs(updates: Updates, rank: int | None) -> tuple[Pairs, dict[str, Any] | None]:
    """A and B of each layer, the scale folded into B; and the error, None for a LoRA adapter, which is exact.

    A weight mask is approximated at one rank for all layers, smaller ones padded with zeros: earlier releases of
    diffusers scale a layer wrongly whose rank differs from the first one's.
    """
    exact = {name: _exact_pair(update) for name, update in updates.items() if isinstance(update, LowRankUpdate)}
    if len(exact) == len(updates):
        return exact, None
    used = min(rank or DEFAULT_RANK, max(min(update.shape) for update in updates.values()))
    deltas = {name: update.delta().detach().float().cpu() for name, update in updates.items()}
    pairs = {name: nearest_low_rank(delta, used) for name, delta in deltas.items()}
    missed = {name: squared_error(up @ down, deltas[name]) for name, (down, up) in pairs.items()}
    return pairs, relative_error(missed)


def _exact_pair(update: LowRankUpdate) -> tuple[Tensor, Tensor]:
    return update.down.detach().float().cpu(), update.up.detach().float().cpu() * update.scale


def nearest_low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A ``(rank, in)`` and B ``(out, rank)`` whose product is nearest to ``delta`` (Eckart and Young 1936).

    The singular values are shared evenly between the two; ranks beyond the layer's own are zero.
    """
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    down, up = torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank)
    down[:kept] = roots[:, None] * right[:kept]
    up[:, :kept] = left[:, :kept] * roots
    return down, up


# Names


def kohya_names(stored: StoredAdapter) -> dict[str, str]:
    """The name of each layer in kohya's LoRA files.

    SD 1.x and 2.x: the diffusers module path with underscores. SDXL: the same of the path in the original (sgm) model,
    which is all that kohya's own loader looks up; ComfyUI and diffusers read both.

    Raises:
        AdapterError: if ``spare.json`` does not say which model this is, or a layer has no place in it.
    """
    paths = {name: name for name in stored.adapter.updates}
    if _pipeline_class(stored) == "StableDiffusionXLPipeline":
        layers = _layers_per_block(stored)
        paths = {name: sgm_path(name, layers) for name in paths}
    return {name: "lora_unet_" + path.replace(".", "_") for name, path in paths.items()}


def sgm_path(name: str, layers_per_block: Sequence[int]) -> str:
    """Where the original Stable Diffusion code keeps a module of a diffusers UNet's attention.

    It numbers all layers in one row: ``input_blocks`` begin with the first convolution and count each level's layers
    and its downsampler; ``output_blocks`` have one layer more than that level going down, and no number for the
    upsampler. Attention always stands second, after the resnet. ``layers_per_block``: going down, outermost first.

    Raises:
        AdapterError: if there is no such place.
    """
    match = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\.(.+)", name)
    if match is None:
        raise AdapterError(f"layer {name} is no part of an attention; it has no name in kohya's files")
    side, block, place, rest = match[1], int(match[2] or 0), int(match[3]), match[4]
    if side is None:
        return f"middle_block.{2 * place + 1}.{rest}"  # resnet, attention, resnet
    layers = list(layers_per_block) if side == "down" else [count + 1 for count in reversed(layers_per_block)]
    if block >= len(layers) or place >= layers[block]:
        raise AdapterError(f"layer {name} is outside the model that spare.json describes ({list(layers_per_block)})")
    if side == "down":
        return f"input_blocks.{1 + sum(layers[:block]) + block + place}.1.{rest}"
    return f"output_blocks.{sum(layers[:block]) + place}.1.{rest}"


def _pipeline_class(stored: StoredAdapter) -> str:
    found = stored.manifest["base"].get("pipeline")
    if found not in ARCHITECTURES:
        raise AdapterError(f"{stored.folder} is for a {found!r}; this export knows {', '.join(ARCHITECTURES)}")
    return str(found)


def _layers_per_block(stored: StoredAdapter) -> list[int]:
    unet = stored.manifest["base"].get("unet")
    layers, blocks = (
        unet.get(key) if isinstance(unet, dict) else None for key in ("layers_per_block", "down_block_types")
    )
    if isinstance(layers, int) and isinstance(blocks, list):
        return [layers] * len(blocks)
    if isinstance(layers, list) and all(isinstance(count, int) for count in layers):
        return layers
    raise AdapterError(f"{stored.folder}: spare.json lacks the UNet's layers_per_block, which kohya's names need")


# Exact changes


def _export_sparse(stored: StoredAdapter, output: Path) -> dict[str, Any]:
    tensors = sparse_tensors(stored.adapter.updates)
    with _creating(output) as folder:
        write_tensors(folder / SPARSE, tensors, _METADATA)
        _write_card(stored, folder, "sparse", None)
    return {"keys": len(tensors), "sha256": _sha256(output / SPARSE), "relative_error": None}


def _export_merged(stored: StoredAdapter, updates: Updates, output: Path, model: str, any_base: bool) -> dict[str, Any]:
    files = find_model(model)
    if files.path.resolve() in output.resolve().parents:
        raise OutputError(f"{output} lies in the model's own directory {files.path}; give another --output")
    if not any_base:
        check_base(stored, files.digest(), model)
    with _creating(output) as folder:
        missed, left_out = merge(files, updates, folder)
        check_merged(files, updates, folder)
        digest = find_model(str(folder)).digest()
        error = relative_error(missed)
        if (folder / CARD).exists():  # the base's own has its licence
            (folder / CARD).rename(folder / _BASE_CARD)
        _write_card(stored, folder, "merged", error)
    return {"keys": len(updates), "sha256": digest, "relative_error": error, "left_out": left_out}


# Shared


def _write_card(stored: StoredAdapter, folder: Path, format: str, error: Mapping[str, Any] | None) -> None:
    write_bytes(folder / CARD, model_card(stored.manifest, format, error).encode())


def changing_layers(stored: StoredAdapter) -> Updates:
    """The updates that are not zero.

    Raises:
        AdapterError: if there is none.
    """
    updates = {name: update for name, update in stored.adapter.updates.items() if update.delta().any()}
    if not updates:
        raise AdapterError(f"{stored.folder} changes no weight; there is nothing to export")
    return updates


def relative_error(missed: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """From (``‖applied - Δ‖²``, ``‖Δ‖²``) of each layer the relative error over all, and of the worst layer."""
    worst = max(missed, key=lambda name: missed[name][0] / missed[name][1])
    error, whole = (sum(column) for column in zip(*missed.values(), strict=True))
    return {
        "overall": (error / whole) ** 0.5,
        "worst": (missed[worst][0] / missed[worst][1]) ** 0.5,
        "worst_layer": worst,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def _creating(output: Path) -> Iterator[Path]:
    """A temporary directory beside ``output`` to fill; renamed to it at the end, removed if anything fails.

    Raises:
        StorageError: if the file system would not take it.
    """
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        temporary.rename(output)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error}; nothing was changed there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
