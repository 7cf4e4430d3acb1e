"""What is drawn from a picture: back to noise and down again, and a part of the way under a prompt."""

from __future__ import annotations

import pytest
import torch

from spare_core.attacks.latents import recalled, redrawn
from spare_core.attacks.scene import wearing
from spare_core.models.conditioning import Conditioning
from spare_core.models.unet import UNetDenoiser
from spare_core.streams import stream
from tests.support.adapters import random_adapter

PROMPTS = ["A Cat image in Neon Lines style.", "A Dog image in Photo style."]


@pytest.fixture(scope="module")
def latents(denoiser: UNetDenoiser) -> torch.Tensor:
    return denoiser.generate(PROMPTS, [1, 2], 10, 4.0).cpu()


@pytest.fixture(scope="module")
def empty(denoiser: UNetDenoiser) -> Conditioning:
    return denoiser.encode_prompts([""])


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).square().mean())


def test_a_picture_comes_back_from_its_noise_the_better_the_more_is_done_for_it(
    denoiser: UNetDenoiser, latents: torch.Tensor, empty: Conditioning
) -> None:
    """Of a model whose empty prompt was changed as well, which the plain way down misses."""
    with wearing(denoiser, [random_adapter(denoiser, "channel")]):
        moved = [distance(recalled(denoiser, empty, latents, 8, inner), latents) for inner in (0, 6)]
    assert moved[1] < moved[0]
    assert moved[1] < 0.5 * float(latents.var())


def test_img2img_keeps_the_more_of_a_picture_the_less_it_is_noised(
    denoiser: UNetDenoiser, latents: torch.Tensor, empty: Conditioning
) -> None:
    conditioning = denoiser.encode_prompts(PROMPTS)
    found = [
        redrawn(denoiser, conditioning, empty, latents, strength, 10, 4.0, stream(1, "test"))
        for strength in (0.1, 0.5, 1.0)
    ]
    near, half, far = (distance(one, latents) for one in found)
    assert near < half < far
    again = redrawn(denoiser, conditioning, empty, latents, 0.5, 10, 4.0, stream(1, "test"))
    torch.testing.assert_close(again, found[1])
