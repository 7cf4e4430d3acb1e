"""Train a grid's judge on renderings, half of them seen through the autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from spare_core.canvas.classifier import Classifier
from spare_core.canvas.training.dataset import Renderings
from spare_core.canvas.training.loop import Schedule, mixed, train
from spare_core.canvas.training.recipe import Recipe
from spare_core.canvas.training.vae import encode


def train_judge(pictures: Renderings, vae: AutoencoderKL, work: Path, recipe: Recipe, seed: int) -> Classifier:
    """Train both heads on renderings and, half of each batch, on renderings that went through the autoencoder: its
    softness alone should never decide a verdict."""
    third = torch.arange(0, len(pictures.pixels), 3, device=pictures.pixels.device)
    soft = reconstruct(vae, Renderings(*(part[third] for part in pictures)))
    torch.manual_seed(seed)
    device = pictures.pixels.device
    judge = Classifier(recipe.grid).to(device)
    half = recipe.batch // 2

    def loss_fn(generator: torch.Generator) -> Tensor:
        sharp_index = torch.randint(len(pictures.pixels), (half,), generator=generator).to(device)
        soft_index = torch.randint(len(soft.pixels), (half,), generator=generator).to(device)
        batch = _augment(torch.cat([pictures.floats(sharp_index), soft.floats(soft_index)]), generator)
        with mixed(device):
            verdict = judge(batch)
        objects = torch.cat([pictures.objects[sharp_index], soft.objects[soft_index]])
        styles = torch.cat([pictures.styles[sharp_index], soft.styles[soft_index]])
        by_object = F.cross_entropy(verdict.objects.float(), objects, label_smoothing=0.05)
        return by_object + F.cross_entropy(verdict.styles.float(), styles, label_smoothing=0.05)

    train("judge", judge, loss_fn, Schedule(steps=recipe.steps["judge"], lr=2e-3, seed=seed, ema=0.998), work)
    return judge.eval()


def _augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 3 pixels (edges repeated) and add a little noise."""
    dy, dx = torch.randint(0, 7, (2,), generator=generator).tolist()
    shifted = F.pad(batch, (3, 3, 3, 3), mode="replicate")[..., dy : dy + 64, dx : dx + 64]
    return shifted + 0.05 * torch.randn(batch.shape, generator=generator).to(batch.device)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Renderings) -> Renderings:
    """``pictures`` after a pass through the autoencoder."""
    parts = []
    for index in torch.arange(len(pictures.pixels), device=pictures.pixels.device).split(128):
        with mixed(pictures.pixels.device):
            output = vae.decode(encode(vae, pictures, index)).sample.float()
        parts.append(((output.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
    return pictures._replace(pixels=torch.cat(parts))


@torch.no_grad()
def judge_accuracy(judge: Classifier, pictures: Renderings) -> tuple[float, float]:
    """Share of ``pictures`` whose object, and whose style, the judge names."""
    hits = torch.zeros(2)
    for index in torch.arange(len(pictures.pixels), device=pictures.pixels.device).split(256):
        verdict = judge(pictures.floats(index))
        hits[0] += (verdict.objects.argmax(-1) == pictures.objects[index]).sum().cpu()
        hits[1] += (verdict.styles.argmax(-1) == pictures.styles[index]).sum().cpu()
    return tuple((hits / len(pictures.pixels)).tolist())
