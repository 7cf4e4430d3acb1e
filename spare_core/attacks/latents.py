"""Latents: what an attacker gets who begins not with words but with a picture of the concept.

*img2img* noises the picture for a part of the way and lets the erased model draw it anew under the concept's name.
*null-text* asks whether the model can still draw that very picture at all, without a text: DDIM leads it back to noise
(arXiv 2010.02502), and on the way down the empty prompt's embedding is moved at each step until that step is the one
that was recorded (null-text inversion, arXiv 2211.09794; as an attack on erasures TINA, 2603.17828). No erasure of the
field withstands that on objects.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser

STRENGTHS: Final = (0.5, 0.75)
"""Share of the noise schedule that img2img goes back."""
_RATE: Final = 1e-3
"""Of AdamW, as TINA has it."""


@torch.no_grad()
def redrawn(
    denoiser: Denoiser,
    conditioning: Conditioning,
    empty: Conditioning,
    latents: Tensor,
    strength: float,
    steps: int,
    guidance: float,
    generator: torch.Generator,
) -> Tensor:
    """Pictures' ``latents`` ``(N, C, H, W)``, noised for ``strength`` of the schedule and drawn anew under their
    ``conditioning``, guided away from ``empty`` (one row)."""
    path = _path(denoiser, max(1, round(steps * strength)), strength)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = denoiser.add_noise(latents, noise, path[0].expand(len(latents)))
    nothing = empty[[0] * len(latents)]
    for now, then in _pairs(path):
        own, other = (_predict(denoiser, noisy, now, each) for each in (conditioning, nothing))
        noisy = denoiser.denoise(noisy, other + guidance * (own - other), *_times(noisy, now, then))
    return noisy


def recalled(denoiser: Denoiser, empty: Conditioning, latents: Tensor, steps: int, inner: int) -> Tensor:
    """Pictures' ``latents`` ``(N, C, H, W)``, drawn again from what they came from, each step under an embedding of its
    own that ``inner`` steps found, from ``empty`` (one row) on."""
    path = _path(denoiser, steps, 1.0)
    passed = _led_back(denoiser, empty, latents, path)
    nothing = empty[[0] * len(latents)]
    embeds = nothing.prompt_embeds.detach().clone()
    noisy = passed[0]
    for (now, then), wanted in zip(_pairs(path), passed[1:], strict=True):
        embeds = embeds.clone().requires_grad_(True)
        optimizer = torch.optim.AdamW([embeds], lr=_RATE)
        for _ in range(inner):
            optimizer.zero_grad()
            found = _step(denoiser, noisy, now, then, Conditioning(embeds, nothing.added))
            F.mse_loss(found, wanted).backward()  # each picture has an embedding of its own
            optimizer.step()
        embeds = embeds.detach()
        with torch.no_grad():
            noisy = _step(denoiser, noisy, now, then, Conditioning(embeds, nothing.added))
    return noisy


@torch.no_grad()
def _led_back(denoiser: Denoiser, empty: Conditioning, latents: Tensor, path: Tensor) -> list[Tensor]:
    """What DDIM passes from noise to the pictures, noise first, the pictures last: run backwards from them."""
    nothing, noisy = empty[[0] * len(latents)], latents
    passed = [latents]
    for now, then in reversed(_pairs(path)):
        # Asked at `now`, as the step down was: where it began, which may be the clean picture, nothing is predicted.
        found = _predict(denoiser, noisy, now, nothing)
        noisy = denoiser.denoise(noisy, found, *_times(noisy, then, now))
        passed.append(noisy)
    return passed[::-1]


def _path(denoiser: Denoiser, steps: int, strength: float) -> Tensor:
    """``steps`` timesteps, falling, from so far up the schedule."""
    top = max(1, round(strength * denoiser.num_timesteps)) - 1
    return torch.linspace(top, 0, steps + 1)[:-1].round().long()


def _pairs(path: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each timestep and the one after it; the clean picture after the last."""
    return list(zip(path, [*path[1:], torch.tensor(-1)], strict=True))


def _times(noisy: Tensor, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
    return now.expand(len(noisy)), then.expand(len(noisy))


def _step(denoiser: Denoiser, noisy: Tensor, now: Tensor, then: Tensor, conditioning: Conditioning) -> Tensor:
    return denoiser.denoise(noisy, _predict(denoiser, noisy, now, conditioning), *_times(noisy, now, then))


def _predict(denoiser: Denoiser, noisy: Tensor, now: Tensor, conditioning: Conditioning) -> Tensor:
    """As many rows at once as fit, with their gradient; on the CPU, where the sampler computes."""
    parts = []
    for index in torch.arange(len(noisy)).split(denoiser.batch_rows(noisy.shape[-1])):
        when = now.expand(len(index)).to(denoiser.device)
        parts.append(denoiser.predict(noisy[index].to(denoiser.device), when, conditioning[index]).cpu())
    return torch.cat(parts)
