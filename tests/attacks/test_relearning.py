"""Relearning trains what it says, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spare_core.attacks.looks import Looks
from spare_core.attacks.relearning import RATES, relearn
from spare_core.attacks.scene import wearing
from spare_core.errors import TrainingError
from spare_core.models.unet import UNetDenoiser
from spare_core.streams import stream
from tests.support.adapters import random_adapter

PROMPTS = ["A Cat image in Neon Lines style."] * 2


@pytest.fixture(scope="module")
def latents(denoiser: UNetDenoiser) -> torch.Tensor:
    return denoiser.generate(PROMPTS, [1, 2], 4, 2.0).cpu()


def loss_under(denoiser: UNetDenoiser, latents: torch.Tensor) -> float:
    """Of noise that no step saw, in the middle of the schedule."""
    noise = torch.randn((8, *latents.shape[1:]), generator=stream(2, "held out"))
    clean, when = latents[torch.arange(8) % 2], torch.linspace(100, 900, 8).long()
    conditioning = denoiser.encode_prompts(PROMPTS)[[0] * 8]
    found = denoiser.predict(denoiser.add_noise(clean, noise, when), when, conditioning)
    return float((found - denoiser.training_target(clean, noise, when)).square().mean())


@pytest.mark.parametrize("way", RATES)
def test_it_learns_and_the_weights_are_as_they_were(denoiser: UNetDenoiser, latents: torch.Tensor, way: str) -> None:
    before = {name: tensor.clone() for name, tensor in denoiser.weights.state_dict().items()}
    adapter = random_adapter(denoiser, "channel")
    update = {name: one.delta().detach().clone() for name, one in adapter.updates.items()}
    losses: list[float] = []

    def look() -> dict[str, Any]:
        with torch.no_grad():
            losses.append(loss_under(denoiser, latents))
        return {"shown": 0.0}

    with wearing(denoiser, [adapter]):
        look()
        relearn(denoiser, way, latents, denoiser.encode_prompts(PROMPTS), 8, 4, 1, Looks(8, look))
        look()
    first, tuned, afterwards = losses
    assert tuned < first
    assert afterwards == pytest.approx(first, rel=1e-5)
    after = denoiser.weights.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in denoiser.weights.parameters())
    assert all(torch.equal(one.delta(), update[name]) for name, one in adapter.updates.items())


def test_a_loss_that_is_not_finite_is_said_and_the_weights_are_put_back(
    denoiser: UNetDenoiser, latents: torch.Tensor
) -> None:
    before = {name: tensor.clone() for name, tensor in denoiser.weights.state_dict().items()}
    broken = torch.full_like(latents, float("nan"))
    with pytest.raises(TrainingError, match=r"relearning \(full\): the loss is not finite at step 1"):
        relearn(denoiser, "full", broken, denoiser.encode_prompts(PROMPTS), 2, 2, 1, Looks(2, dict))
    after = denoiser.weights.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
