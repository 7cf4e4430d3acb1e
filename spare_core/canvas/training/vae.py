"""The autoencoder: 64 x 64 x 3 pictures to 12 x 8 x 8 latents (f = 8)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from spare_core.canvas.training.dataset import Renderings
from spare_core.canvas.training.loop import Schedule, mixed, train
from spare_core.canvas.training.recipe import Recipe

BATCH = 24
KL_WEIGHT = 1e-4
SLOPE_WEIGHT = 1.0


def build_vae() -> AutoencoderKL:
    """The untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=12,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
    )


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 on the pixels plus L1 on their slopes: lines and textures are what the styles are made of."""
    loss = F.l1_loss(output, target)
    for dim in (2, 3):
        loss = loss + SLOPE_WEIGHT * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def train_vae(pictures: Renderings, work: Path, recipe: Recipe, seed: int) -> AutoencoderKL:
    """Train on ``pictures`` and set ``scaling_factor`` so that latents have unit variance; or load the recipe's."""
    device = pictures.pixels.device
    if recipe.autoencoder is not None:
        return AutoencoderKL.from_pretrained(recipe.autoencoder, torch_dtype=torch.float32).to(device)
    torch.manual_seed(seed)
    vae = build_vae().to(device)

    def loss_fn(generator: torch.Generator) -> Tensor:
        target = pictures.floats(torch.randint(len(pictures.pixels), (BATCH,), generator=generator).to(device))
        with mixed(device):
            posterior = vae.encode(target).latent_dist
            latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(device)
            output = vae.decode(latents).sample
        return reconstruction_loss(output.float(), target) + KL_WEIGHT * posterior.kl().float().mean() / 768

    train("vae", vae, loss_fn, Schedule(steps=recipe.steps["vae"], lr=2e-3, seed=seed, ema=0.995), work)
    latents = encode(vae, pictures, torch.arange(0, len(pictures.pixels), 16, device=device))
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Renderings, index: Tensor) -> Tensor:
    """Posterior means of the chosen pictures, ``(N, 12, 8, 8)``, unscaled."""
    with mixed(index.device):
        return torch.cat([vae.encode(pictures.floats(part)).latent_dist.mean.float() for part in index.split(128)])
