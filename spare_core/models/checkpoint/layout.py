"""What one file of weights is: told from its header, before anything is loaded.

The original Stable Diffusion code keeps a whole model in one file, and so do Civitai, A1111 and ComfyUI. The same
suffix has LoRAs, VAEs, embeddings and models of other kinds, each of which people take for a model once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from spare_core.errors import ModelError
from spare_core.models.digest import read_header

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
CLIP: Final = "cond_stage_model.transformer.text_model."
OPEN_CLIP: Final = "cond_stage_model.model."
XL_CLIP: Final = "conditioner.embedders.0.transformer.text_model."
XL_OPEN_CLIP: Final = "conditioner.embedders.1.model."
"""Where the original code keeps the parts."""
NO_MODELS: Final = (
    (("lora_unet_", "lora_te", "lora_A.weight", "lora_B.weight", ".lora_down.", ".lora_up."), "a LoRA, not a model"),
    (("model.diffusion_model.joint_blocks", "joint_blocks."), "an SD 3 model, which is not supported yet"),
    (("double_blocks.", "transformer_blocks.0.ff_context"), "a FLUX model, which is not supported yet"),
    (("control_model.", "controlnet_cond_embedding", "input_hint_block"), "a ControlNet, not a model"),
    (("conditioner.embedders.0.model.",), "the refiner of SDXL, which completes pictures of others; give its base"),
    (("emb_params", "string_to_param"), "a textual inversion, not a model"),
)
"""What names of tensors tell of files that are something else."""


@dataclass(frozen=True)
class Layout:
    """A checkpoint's header: the ``shapes`` and ``dtypes`` (as safetensors calls them) of its tensors by name, and what
    its maker wrote into it, ``metadata``; ``kind`` is "sd1", "sd2" or "sdxl"."""

    file: Path
    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ModelError: if the file lacks it.
        """
        if name not in self.shapes:
            raise ModelError(f"{self.file} lacks the weight {name!r}; is the download complete?")
        return self.shapes[name]

    def count(self, prefix: str) -> int:
        """How many numbers follow ``prefix`` in names, those without a gap from 0 on."""
        numbers = {name[len(prefix) :].partition(".")[0] for name in self.shapes if name.startswith(prefix)}
        return next(i for i in range(len(numbers) + 1) if str(i) not in numbers)

    def part_dtypes(self, *prefixes: str) -> set[str]:
        """The types of numbers, other than whole ones, of a part."""
        return {
            dtype
            for name, dtype in self.dtypes.items()
            if name.startswith(prefixes) and dtype[0] in "FB" and dtype != "BOOL"
        }


def read_layout(file: Path) -> Layout:
    """Read the header of a checkpoint.

    Raises:
        ModelError: if it is damaged, or no Stable Diffusion model that can be erased from, saying what it is.
    """
    try:
        header, _ = read_header(file)
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} is not a readable safetensors file ({error}); fetch it again") from None
    return Layout(
        file, _kind(file, header), {name: tuple(entry["shape"]) for name, entry in header.items()},
        {name: entry["dtype"] for name, entry in header.items()}, metadata,
    )  # fmt: skip


def _kind(file: Path, header: Mapping[str, Any]) -> str:
    for signs, what in NO_MODELS:
        if any(sign in name for name in header for sign in signs):
            raise ModelError(f"{file} is {what}")
    parts = {
        "denoiser": (UNET,), "VAE": (VAE,), "text encoder": (CLIP, OPEN_CLIP, XL_CLIP),
    }  # fmt: skip
    found = {what for what, prefixes in parts.items() if any(name.startswith(prefixes) for name in header)}
    if "denoiser" not in found:
        only = f" (only a {' and a '.join(sorted(found))})" if found else ""
        raise ModelError(
            f"{file} holds no denoiser of Stable Diffusion{only}: its names begin with "
            f"{next(iter(sorted(header)), 'nothing')!r}; give a whole checkpoint, or a diffusers directory"
        )
    for what in parts:
        if what not in found:
            raise ModelError(
                f"{file} holds no {what}: it was saved to be used with another file's; save the whole model, or give a "
                "diffusers directory"
            )
    if any(name.startswith(XL_CLIP) for name in header):
        if not any(name.startswith(XL_OPEN_CLIP) for name in header):
            raise ModelError(f"{file} lacks the second text encoder of SDXL; is the download complete?")
        return "sdxl"
    return "sd1" if any(name.startswith(CLIP) for name in header) else "sd2"
