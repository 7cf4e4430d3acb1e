"""The digest that names a base model's weights (DESIGN 4), and which files they are in.

A copy of this file travels inside every registered adapter, to check the base where it is loaded: it needs nothing else
of SPARE.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open

ARCHITECTURES: Final = {
    "StableDiffusionPipeline": ("unet", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "text_encoder", "text_encoder_2"),
}
"""Supported pipelines, and the components whose weights the digest covers."""
WANTED: Final = ("model_index.json", "*/*.json", "*/*.txt", "unet/*.safetensors", "text_encoder*/*.safetensors",
                 "vae/*.safetensors")  # fmt: skip
"""What is fetched from a hub or from S3: no pickles, not the whole checkpoints that lie beside the components."""
VARIANTS: Final = (None, "fp16")
"""Kinds of weight files, in the order in which they are looked for."""


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of one variant, shards in order."""
    pattern = re.compile(
        r"(diffusion_pytorch_model|model)" + (rf"\.{variant}" if variant else "") + r"(-\d+-of-\d+)?\.safetensors"
    )
    return sorted(file for file in folder.glob("*.safetensors") if pattern.fullmatch(file.name))


def plain_name(name: str) -> str:
    """A tensor's name without the prefix that transformers 4 writes and transformers 5 leaves out."""
    return name.removeprefix("text_model.")


def tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of a safetensors file under its file-independent name, read one at a time."""
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
            yield plain_name(name), opened.get_tensor(name)


def digest(components: Iterable[tuple[str, Iterable[tuple[str, torch.Tensor]]]]) -> str:
    """sha256 over the sorted (component, tensor name, dtype, shape, bytes) of denoiser and text encoders.

    The same weights in another folder, or split into other files, have the same digest.
    """
    entries = []
    for component, found in components:
        for name, tensor in found:
            content = hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
            entries.append((component, name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), content))
    return hashlib.sha256(json.dumps(sorted(entries), separators=(",", ":")).encode()).hexdigest()


def digest_of_folder(folder: Path) -> str:
    """Of a diffusers directory; of the first variant that it has weights of.

    Raises:
        OSError, KeyError, ValueError: if it is none of a supported kind.
    """
    pipeline_class = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    components = ARCHITECTURES[pipeline_class]
    variant = next(one for one in VARIANTS if weight_files(folder / components[0], one))
    files = {one: weight_files(folder / one, variant) for one in components}
    return digest((one, chain.from_iterable(map(tensors, files[one]))) for one in components)
