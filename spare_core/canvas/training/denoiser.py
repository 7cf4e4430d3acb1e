"""Train a grid's UNet and text encoder together on encoded latents, and write the pipeline directory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from spare_core.canvas.grid import TEMPLATE, Grid
from spare_core.canvas.training.dataset import Renderings
from spare_core.canvas.training.loop import Schedule, mixed, train
from spare_core.canvas.training.recipe import Recipe
from spare_core.canvas.training.tokenizer import MAX_LENGTH

CAPTIONS: Final = ((TEMPLATE, 0.8), ("A {object} image.", 0.05), ("An image in {style} style.", 0.05), ("", 0.1))
"""Caption templates and how often each is used; the empty one is what guidance is measured against."""
MIN_SNR_GAMMA: Final = 5.0
"""Hang et al., arXiv 2303.09556: the weight of a timestep is min(SNR, gamma) / SNR for noise prediction."""


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x's noise schedule; spacing "trailing" starts the sampler at pure noise (arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def build_unet(grid: Grid) -> UNet2DConditionModel:
    """The untrained UNet."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        block_out_channels=grid.channels,
        layers_per_block=1,
        cross_attention_dim=grid.text_width,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )


def build_text_encoder(vocabulary: int, grid: Grid) -> CLIPTextModel:
    """The untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=grid.text_width,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=grid.text_width,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


class _Captions:
    """Token ids of every caption of the grid, ``(templates, objects, styles, length)``."""

    def __init__(self, tokenizer: CLIPTokenizer, grid: Grid, device: torch.device) -> None:
        texts = [t.format(object=o, style=s) for t, _ in CAPTIONS for o in grid.objects for s in grid.styles]
        ids = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids
        self.ids = ids.view(len(CAPTIONS), len(grid.objects), len(grid.styles), MAX_LENGTH).to(device)
        self.weights = torch.tensor([weight for _, weight in CAPTIONS])

    def draw(self, objects: Tensor, styles: Tensor, generator: torch.Generator) -> Tensor:
        template = torch.multinomial(self.weights, len(objects), replacement=True, generator=generator)
        template = template.to(objects.device)
        return self.ids[template, objects, styles]


def train_denoiser(
    latents: Tensor,
    pictures: Renderings,
    tokenizer: CLIPTokenizer,
    work: Path,
    recipe: Recipe,
    seed: int,
    known: CLIPTextModel | None = None,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train on scaled ``latents``, ``(N, 12, 8, 8)``, whose objects and styles ``pictures`` names; a text encoder that
    is ``known`` stays as it is."""
    torch.manual_seed(seed)
    device, batch = latents.device, recipe.batch
    unet = build_unet(recipe.grid).to(device)
    trained = nn.ModuleDict({"unet": unet})
    text_encoder = known
    if text_encoder is None:
        text_encoder = build_text_encoder(len(tokenizer), recipe.grid).to(device)
        trained["text_encoder"] = text_encoder
    if device.type == "cpu":  # plain attention: the fused kernel's backward pass took 46 % of a step there
        unet.set_attn_processor(AttnProcessor())
    scheduler, captions = build_scheduler(), _Captions(tokenizer, recipe.grid, device)
    alphas = scheduler.alphas_cumprod.to(device)
    snr = alphas / (1.0 - alphas)
    weights = snr.clamp(max=MIN_SNR_GAMMA) / snr

    def loss_fn(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (batch,), generator=generator).to(device)
        ids = captions.draw(pictures.objects[index], pictures.styles[index], generator)
        timesteps = torch.randint(len(alphas), (batch,), generator=generator).to(device)
        noise = torch.randn((batch, *latents.shape[1:]), generator=generator).to(device)
        noisy = scheduler.add_noise(latents[index], noise, timesteps)
        with mixed(device):
            noise_pred = unet(noisy, timesteps, text_encoder(ids).last_hidden_state).sample
        return (weights[timesteps] * (noise_pred.float() - noise).pow(2).mean(dim=(1, 2, 3))).mean()

    schedule = Schedule(steps=recipe.steps["denoiser"], lr=1e-3, seed=seed, ema=0.9995)
    train("denoiser", trained, loss_fn, schedule, work)
    return unet, text_encoder


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write a fp16 ``StableDiffusionPipeline`` directory that old and new diffusers/transformers read alike."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        unet=unet.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    _prefix_text_weights(folder / "text_encoder" / "model.safetensors")


def _prefix_text_weights(path: Path) -> None:
    """Name the weights ``text_model.…``: transformers 4 loads random weights, with only a warning, without it."""
    tensors = {
        key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in load_file(path).items()
    }
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.rename(path)
