"""Pipelines as one file, in the layout of the original Stable Diffusion code: the way back from what diffusers reads.

Written from the layout itself, so that what reads it is tested against something else than its own inverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

UNET_LAYERS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def write_single_file(pipeline: Any, file: Path, metadata: dict[str, str] | None = None, **more: Tensor) -> Path:
    """``pipeline``, an SD 1.x or 2.x one or an SDXL, as a checkpoint, with ``more`` tensors in it."""
    found = {f"model.diffusion_model.{unet_name(pipeline.unet, k)}": v for k, v in pipeline.unet.state_dict().items()}
    for name, tensor in pipeline.vae.state_dict().items():
        square = re.search(r"attentions\.0\.to_\w+(\.0)?\.weight", name)
        found[f"first_stage_model.{vae_name(pipeline.vae, name)}"] = tensor[..., None, None] if square else tensor
    xl = hasattr(pipeline, "text_encoder_2")
    prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    if pipeline.text_encoder.config.hidden_act == "gelu":
        found |= open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        found |= {f"{prefix}text_model.{k.removeprefix('text_model.')}": v
                  for k, v in pipeline.text_encoder.state_dict().items()}  # fmt: skip
    if xl:
        found |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    save_file({name: tensor.contiguous().clone() for name, tensor in (found | more).items()}, file, metadata)
    return file


def unet_name(unet: Any, name: str) -> str:
    """Where the original code keeps a weight of a UNet."""
    module, kind = name.rsplit(".", 1)
    if module in UNET_LAYERS:
        return f"{UNET_LAYERS[module]}.{kind}"
    layers = unet.config.layers_per_block
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", module):
        place = 2 * int(found[2]) if found[1] == "resnets" else 1
        return f"middle_block.{place}.{resnet(found[1], found[3])}.{kind}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", module)
    assert found is not None, name
    side, block, what, layer = found[1], int(found[2]), found[3], int(found[4])
    row = block * (layers + 1) + layer
    if what == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{kind}"
    if what == "upsamplers":
        after = 2 if "CrossAttn" in unet.config.up_block_types[block] else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{after}.conv.{kind}"
    at = f"input_blocks.{row + 1}" if side == "down" else f"output_blocks.{row}"
    return f"{at}.{0 if what == 'resnets' else 1}.{resnet(what, found[5])}.{kind}"


def resnet(what: str, rest: str) -> str:
    return RESNET[rest] if what == "resnets" else rest


def vae_name(vae: Any, name: str) -> str:
    """Where the original code keeps a weight of a VAE."""
    count = len(vae.config.block_out_channels)

    def up(match: re.Match[str]) -> str:
        return f"up.{count - 1 - int(match[1])}."

    for pattern, to in (
        (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
        (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
        (r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda match: f"{up(match)}upsample."),
        (r"up_blocks\.(\d+)\.resnets\.", lambda match: f"{up(match)}block."),
        (r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"), (r"group_norm", "norm"), (r"to_out\.0", "proj_out"),
        (r"to_([qkv])", r"\1"), (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
    ):  # fmt: skip
        name = re.sub(pattern, to, name)
    return name


def open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder as OpenCLIP has it: queries, keys and values in one."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    return dict(_open_clip(state, prefix))


def _open_clip(state: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    whole = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    for name, tensor in state.items():
        if name in whole:
            yield prefix + whole[name], tensor
        elif name == "text_projection.weight":
            yield f"{prefix}text_projection", tensor.T
        elif found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            at = f"{prefix}transformer.resblocks.{found[1]}"
            if found[2] in parts:
                yield f"{at}.{parts[found[2]]}.{found[3]}", tensor
            elif found[2] == "self_attn.q_proj":
                whole_name = f"encoder.layers.{found[1]}.self_attn.{{}}_proj.{found[3]}"
                yield f"{at}.attn.in_proj_{found[3]}", torch.cat([state[whole_name.format(one)] for one in "qkv"])


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a component's folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
