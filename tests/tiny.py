"""Small pipelines with random weights in the three architectures that SPARE supports, as diffusers saves them.

They draw noise, but their layouts are the real ones: module names, block structure, prediction type and text encoders
are those of SD 1.x, SD 2.x (v-prediction) and SDXL, so whatever holds for names, shapes and files holds there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from spare_core.canvas.protocol import CANVAS
from spare_core.canvas.training.tokenizer import MAX_LENGTH, write_grid_tokenizer

PIXELS = 16
_WIDTH = 32
"""Hidden size of each text encoder."""


def build_sd1(folder: Path) -> Path:
    """SD 1.x: three levels, convolutions around the transformers, epsilon-prediction.

    One layer a level where the real ones have two: most tests erase from this model.
    """
    torch.manual_seed(101)
    unet = _unet(attention_head_dim=4, cross_attention_dim=_WIDTH, layers_per_block=1)
    return _save_sd(folder, unet, "epsilon")


def build_sd2_v(folder: Path) -> Path:
    """SD 2.x: linear projections around the transformers, head counts by level, v-prediction."""
    torch.manual_seed(202)
    unet = _unet(attention_head_dim=[2, 4, 4], cross_attention_dim=_WIDTH, use_linear_projection=True)
    return _save_sd(folder, unet, "v_prediction")


def build_sdxl(folder: Path) -> Path:
    """SDXL: no attention in the outermost level, deeper transformers inwards, two text encoders, size conditions."""
    torch.manual_seed(303)
    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[2, 4, 4],
        cross_attention_dim=2 * _WIDTH,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
    )
    # A random model takes most of a prompt from the pooled embedding, which reaches no attention; a trained one reads
    # it through cross-attention, which is what is erased.
    unet.add_embedding.linear_2.weight.data.mul_(0.05)
    tokenizers = [_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    config = _text_config(len(tokenizers[0]))
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        unet=unet,
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=_scheduler("epsilon"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _save_sd(folder: Path, unet: UNet, prediction_type: str) -> Path:
    tokenizer = _tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=_vae(0.18215),
        unet=unet,
        text_encoder=CLIPTextModel(_text_config(len(tokenizer))),
        tokenizer=tokenizer,
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _unet(**differing: Any) -> UNet:
    layout = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        **differing,
    }
    return UNet(sample_size=PIXELS // 2, block_out_channels=(8, 16, 16), norm_num_groups=4, **layout)


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=PIXELS,
        scaling_factor=scaling_factor,
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    write_grid_tokenizer(folder, CANVAS)
    return CLIPTokenizer.from_pretrained(folder)


def _text_config(vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=_WIDTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
