"""The noise schedule of DDPM and DDIM: x_t = sqrt(s) x_0 + sqrt(1 - s) noise, with the signal s = abar_t.

Pure functions on ``noisy`` x_t ``(B, C, H, W)`` and ``signal`` s ``(B, 1, 1, 1)``. diffusers' schedulers compute the
same, but at one timestep for a whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def signal(timesteps: Tensor, alphas_cumprod: Tensor, final: Tensor) -> Tensor:
    """The signal ``(B, 1, 1, 1)`` at integer ``timesteps`` ``(B,)``; at -1, after the last step, ``final``."""
    found = torch.where(timesteps >= 0, alphas_cumprod[timesteps.clamp(min=0)], final)
    return found[:, None, None, None]


def noise_in(noisy: Tensor, latents: Tensor, signal: Tensor) -> Tensor:
    """The noise that makes ``noisy`` of the picture ``latents`` x_0."""
    return (noisy - signal.sqrt() * latents) / (1 - signal).sqrt()


def ddim_step(noisy: Tensor, prediction: Tensor, now: Tensor, then: Tensor, prediction_type: str) -> Tensor:
    """One step of deterministic DDIM from the signal ``now`` to the signal ``then`` (equation 12 of arXiv 2010.02502,
    without noise). ``prediction`` is the noise, or the velocity for "v_prediction"."""
    if prediction_type == "v_prediction":
        clean = now.sqrt() * noisy - (1 - now).sqrt() * prediction
        noise = now.sqrt() * prediction + (1 - now).sqrt() * noisy
    else:
        noise = prediction
        clean = (noisy - (1 - now).sqrt() * noise) / now.sqrt()
    return then.sqrt() * clean + (1 - then).sqrt() * noise
