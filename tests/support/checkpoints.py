"""Pipelines with random weights whose every proportion is Stable Diffusion's, as a directory and as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from spare_core.models.clip_tokenizer import clip_merges, write_tokenizer
from tests.support.original import write_single_file

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def build(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline of 16 x 16 pixels: widths are small, but heads, groups, text encoders and vocabulary are the real
    ones', so that whatever is told from a real file's shapes is told from this one's. ``kind``: sd1, sd2, sdxl."""
    torch.manual_seed(7)
    pad = {"sd1": "<|endoftext|>", "sd2": "!", "sdxl": "<|endoftext|>"}[kind]
    tokenizers = [tokenizer(folder / "t1", pad), tokenizer(folder / "t2", "!")]
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, layers_per_block=2,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )  # fmt: skip
    down, up = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
    if kind == "sd1":
        down[2], up[0] = "DownBlock2D", "UpBlock2D"
        unet = network(down, up, (32, 64, 64), cross_attention_dim=64, attention_head_dim=8)
        encoder = CLIPTextModel(text("quick_gelu"))
        parts = {"scheduler": PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **NOISE)}
    elif kind == "sd2":
        down[2], up[0] = "DownBlock2D", "UpBlock2D"
        unet = network(
            down, up, (64, 128, 128), cross_attention_dim=64, attention_head_dim=[1, 2, 2], use_linear_projection=True
        )
        encoder = CLIPTextModel(text("gelu"))
        parts = {"scheduler": DDIMScheduler(
            set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction", **NOISE
        )}  # fmt: skip
    else:
        down[0], up[2] = "DownBlock2D", "UpBlock2D"
        unet = network(
            down, up, (64, 64, 128), cross_attention_dim=192, attention_head_dim=[1, 1, 2], use_linear_projection=True,
            transformer_layers_per_block=(1, 1, 2), addition_embed_type="text_time", addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=6 * 16 + 128,
        )  # fmt: skip
        encoder = CLIPTextModel(text("quick_gelu"))
        parts = {
            "scheduler": EulerDiscreteScheduler(timestep_spacing="leading", **NOISE),
            "text_encoder_2": CLIPTextModelWithProjection(text("gelu", 128)), "tokenizer_2": tokenizers[1],
        }  # fmt: skip
    more = (
        {"add_watermarker": False} if kind == "sdxl" else
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )  # fmt: skip
    made = (StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline)(
        unet=unet, vae=vae, text_encoder=encoder, tokenizer=tokenizers[0], **parts, **more
    )
    return made.to(dtype)


def network(down: list[str], up: list[str], widths: tuple[int, ...], **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=widths, down_block_types=tuple(down), up_block_types=tuple(up),
        layers_per_block=2, **more,
    )  # fmt: skip


def text(act: str, width: int = 64) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, hidden_act=act,
        num_attention_heads=width // 64, max_position_embeddings=77, projection_dim=width, eos_token_id=2,
    )  # fmt: skip


def tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    write_tokenizer(folder, clip_merges(), 77, pad)
    return CLIPTokenizer.from_pretrained(folder)


def save_both(kind: str, folder: Path) -> tuple[Path, Path]:
    """The same model as a directory and as one file."""
    pipeline = build(kind, folder)
    pipeline.save_pretrained(folder / "model")
    said = {"modelspec.resolution": "16x16", "modelspec.prediction_type": "v" if kind == "sd2" else "epsilon"}
    return folder / "model", write_single_file(pipeline, folder / "model.safetensors", said)
