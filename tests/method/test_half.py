"""A model whose weights rest in half precision, as on a GPU: everything is computed in it, nothing converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser

ERASURES = Erasures(Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", ("a cat", "a dog")))
SMALL: dict[str, Any] = {
    "examples": 2, "retain_examples": 2, "heldout": 2, "example_steps": 2, "steps": 3, "failed_above": 100,
    "batch_size": 2, "lr": 1e-3, "rank": 4,
}  # fmt: skip


@pytest.fixture(params=["sd1_dir", "sdxl_dir"])
def half(request: pytest.FixtureRequest) -> UNetDenoiser:
    """A model of each layout in bfloat16, as it comes to lie on a GPU."""
    folder: Path = request.getfixturevalue(request.param)
    denoiser = load_denoiser(str(folder), "cpu", "bfloat16")
    denoiser.pipeline.to(torch.bfloat16)
    return denoiser


def test_all_stages_compute_in_it_without_autocast(half: UNetDenoiser) -> None:
    converting: list[bool] = []
    half.weights.register_forward_pre_hook(lambda *_: converting.append(torch.is_autocast_enabled("cpu")))
    settings = EraseSettings.from_mapping({"method": "paper", **SMALL, "mask": "channel", "saliency_batches": 1})
    erased = overwrite(prepare(half, ERASURES, settings), settings)
    assert erased.state.step == 3
    assert erased.measured.residual != pytest.approx(1.0, abs=1e-6), "its steps changed something"
    assert {parameter.dtype for parameter in erased.adapter.parameters()} == {torch.float32}
    assert half.weights.dtype is torch.bfloat16
    assert converting
    assert not any(converting)


def test_the_adversary_too(half: UNetDenoiser) -> None:
    settings = EraseSettings.from_mapping({"method": "robust", **SMALL, "prior_texts": 40})
    erased = overwrite(prepare(half, ERASURES, settings), settings)
    assert erased.state.step == 3
    assert torch.tensor(erased.state.losses).isfinite().all()


def test_pictures_are_near_those_of_full_precision(half: UNetDenoiser) -> None:
    encoded = half.encode_prompts(["a cat in Neon", "a dog in Photo"])
    fast = half.decode_latents(half.sample(encoded, [1, 2], 2, 2.0))
    half.pipeline.to(torch.float32)
    half.dtype = torch.float32
    precise = half.decode_latents(half.sample(encoded, [1, 2], 2, 2.0))
    assert fast.dtype is torch.float32
    assert float((fast - precise).abs().mean()) < 0.02
    assert float((precise[0] - precise[1]).abs().mean()) > 0.04, "or any two pictures would be near each other"
