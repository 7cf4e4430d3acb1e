"""Relearning: how soon fine-tuning brings a concept back, the erasure staying where it is.

Whoever holds the weights can train them. The adapters stay on, and the model is fine-tuned as people do it, on pictures
that the base drew: with a LoRA of its own in every attention layer, or in all of its weights. Tuning on pictures of
something else is the control: what comes back then was hidden, not overwritten (arXiv 2410.12777).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spare_core.adapters.low_rank import Adapter
from spare_core.attacks.inversion import pictures
from spare_core.attacks.looks import Looks
from spare_core.errors import TrainingError
from spare_core.method.masks import whole_layers
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream

RATES: Final = {"lora": 1e-3, "full": 1e-4}
"""Of AdamW, by way of fine-tuning."""
_RANK: Final = 8


def relearn(
    denoiser: Denoiser,
    way: str,
    latents: Tensor,
    conditioning: Conditioning,
    steps: int,
    batch_size: int,
    seed: int,
    looks: Looks,
) -> None:
    """Fine-tune ``denoiser`` as it is, adapters on, on ``latents`` ``(N, C, H, W)`` under their ``conditioning``, and
    look in between. Its weights are as they were afterwards.

    Raises:
        TrainingError: if a loss is not finite.
    """
    generator = stream(seed, "relearning", way, len(latents))
    draw = pictures(denoiser, latents, torch.arange(len(latents)))
    with _tuned(denoiser, way, seed) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=RATES[way])
        for step in range(1, steps + 1):
            noisy, timesteps, rows, wanted = (part.to(denoiser.device) for part in draw(batch_size, generator))
            loss = F.mse_loss(denoiser.predict(noisy, timesteps, conditioning[rows]), wanted)
            if not torch.isfinite(loss):
                raise TrainingError(f"relearning ({way}): the loss is not finite at step {step}; try --dtype float32")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            looks.after(step)


@contextlib.contextmanager
def _tuned(denoiser: Denoiser, way: str, seed: int) -> Iterator[list[nn.Parameter]]:
    """What is trained; the model is as it was afterwards."""
    if way == "lora":
        layers = denoiser.target_layers()
        own = Adapter.initialise(denoiser, whole_layers(layers, layers), _RANK, _RANK, seed)
        with own.attached(denoiser):
            yield own.parameters()
        return
    parameters = list(denoiser.weights.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value).requires_grad_(False)
                parameter.grad = None
