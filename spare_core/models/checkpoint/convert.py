"""A single-file model as a diffusers directory, made once and kept in the cache.

diffusers knows what the original code's weights are called in its own; configuration and tokenizer come along, so
nothing is fetched. Weights keep the type that the file has them in: the digest is that of the same weights saved as a
directory.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spare_core.errors import ModelError
from spare_core.models.checkpoint.configs import TEXT_MODELS, component_configs, pipeline_index, vocabulary_sizes
from spare_core.models.checkpoint.layout import OPEN_CLIP, UNET, VAE, XL_OPEN_CLIP, Layout, read_layout
from spare_core.models.clip_tokenizer import END, clip_merges, vocabulary, write_tokenizer
from spare_core.models.digest import DTYPES, plain_name
from spare_core.store.cache import SINGLE_FILES, cache_folder, filled, short_digest

if TYPE_CHECKING:
    import torch

_FORM: Final = 1
"""Counts up when what is made of the same file changes."""
_NARROW: Final = "F8_"


def check_checkpoint(file: Path) -> None:
    """Refuse a file that holds no model of a supported kind, by its header.

    Raises:
        ModelError: saying what it is, or lacks.
    """
    _described(file)


def as_directory(file: Path) -> Path:
    """The diffusers directory of a single-file model: the cached one, or made now. Not to be written to.

    Raises:
        ModelError: if it is no model of a supported kind, or diffusers cannot convert it.
        StorageError: if the disk would not take it.
    """
    facts = file.stat()
    beside = file.with_suffix(".yaml")
    key = [_FORM, str(file.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino,
           beside.read_bytes().hex() if beside.is_file() else ""]  # fmt: skip
    ready = cache_folder() / SINGLE_FILES / short_digest(key[:2]) / short_digest(key)
    described = None if ready.is_dir() else _described(file)  # refused before anything is written

    def fill(folder: Path) -> None:
        layout, configs = described or _described(file)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _convert(layout, configs, folder)

    return filled(ready, ready.is_dir, fill)


def _described(file: Path) -> tuple[Layout, dict[str, dict[str, Any]]]:
    layout = read_layout(file)
    expected = len(vocabulary(clip_merges()))
    try:
        sizes, configs = vocabulary_sizes(layout), component_configs(layout)
    except (IndexError, ValueError, OverflowError):  # of shapes that are none of these weights'
        raise ModelError(
            f"{file} has weights of other shapes than Stable Diffusion's; give the model as a diffusers directory"
        ) from None
    for name, size in sizes.items():
        if size != expected:
            raise ModelError(
                f"{file}: its {name} knows {size} tokens, CLIP's tokenizer {expected}; a model with another one is "
                "read as a diffusers directory only, which holds it"
            )
    return layout, configs


def _convert(layout: Layout, configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    index = pipeline_index(layout)
    (folder / "scheduler").mkdir()
    schedule = {"_class_name": index["scheduler"][1], **configs["scheduler"]}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule, indent=2) + "\n")
    for name, prefix in TEXT_MODELS[layout.kind].items():
        pad = "!" if prefix in (OPEN_CLIP, XL_OPEN_CLIP) else END
        length = configs[name]["max_position_embeddings"]
        write_tokenizer(folder / name.replace("text_encoder", "tokenizer"), clip_merges(), length, pad)
    with _said_of(layout.file):
        _write_networks(layout, configs, index, folder)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_networks(
    layout: Layout, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any], folder: Path
) -> None:
    import diffusers
    import torch
    import transformers
    from diffusers.loaders import single_file_utils as original
    from safetensors.torch import load_file

    weights = load_file(layout.file)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}

    convert = {"unet": original.convert_ldm_unet_checkpoint, "vae": original.convert_ldm_vae_checkpoint}
    for name, prefix in (("unet", UNET), ("vae", VAE)):
        with torch.device("meta"):
            network = getattr(diffusers, index[name][1]).from_config(configs[name])
        _save(network, convert[name](part(prefix), network.config), folder / name, layout, prefix)
        network.save_config(folder / name)
    for name, prefix in TEXT_MODELS[layout.kind].items():
        with torch.device("meta"):
            network = getattr(transformers, index[name][1])(transformers.CLIPTextConfig(**configs[name]))
        if prefix in (OPEN_CLIP, XL_OPEN_CLIP):
            converted = original.convert_open_clip_checkpoint(network, part(prefix), prefix=prefix)
        else:
            converted = original.convert_ldm_clip_checkpoint(part(prefix))
        _save(network, converted, folder / name, layout, prefix)
        network.config.architectures = [index[name][1]]
        network.config.save_pretrained(folder / name)


def _save(
    network: torch.nn.Module, weights: Mapping[str, torch.Tensor], folder: Path, layout: Layout, prefix: str
) -> None:
    """Write what ``network``, which has shapes only, asks for of the converted ``weights``.

    Raises:
        ModelError: if something is not there, or has another shape.
    """
    from safetensors.torch import save_file

    known = {plain_name(name): tensor for name, tensor in weights.items()}
    wanted = network.state_dict()
    missing = [name for name in wanted if plain_name(name) not in known]
    if missing:
        several = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{layout.file} lacks what becomes the weight {missing[0]!r}{several} of its {folder.name}; is the "
            "download complete?"
        )
    for name, shape in wanted.items():
        if known[plain_name(name)].shape != shape.shape:
            raise ModelError(
                f"{layout.file}: the weight {name!r} of its {folder.name} is {[*known[plain_name(name)].shape]}, and "
                f"{[*shape.shape]} beside the others; give the model as a diffusers directory"
            )
    dtype = _dtype(layout, prefix)
    folder.mkdir()
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    tensors = {name: known[plain_name(name)].to(dtype).contiguous() for name in wanted}
    save_file(tensors, folder / f"{stem}.safetensors", {"format": "pt"})  # whole when its folder is: nothing is copied


def _dtype(layout: Layout, prefix: str) -> torch.dtype:
    """The type that holds a part's numbers as they are; of several the widest. Those of eight bits are for storage
    only, and half precision holds them."""
    import torch

    found = {"F16" if dtype.startswith(_NARROW) else dtype for dtype in layout.part_dtypes(prefix)}
    return getattr(torch, DTYPES[found.pop()]) if len(found) == 1 else torch.float32


@contextlib.contextmanager
def _said_of(file: Path) -> Iterator[None]:
    """Errors of diffusers' conversion as one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise ModelError(f"diffusers cannot convert {file}: {' '.join(str(error).split())[:300]}") from None
