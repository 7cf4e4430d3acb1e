"""An attached adapter is what stock diffusers will apply; a detached one was never there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.low_rank import Adapter, DeltaUpdate, LowRankUpdate
from spare_core.errors import AdapterError, SettingsError
from spare_core.method.settings import MaskKind
from spare_core.models.unet import UNetDenoiser
from tests.support import stock
from tests.support.adapters import deltas, load_tiny, predict, random_adapter, random_masks, store

TOLERANCE = 1e-5
"""Largest difference of float32 noise predictions that counts as none."""


@pytest.fixture(scope="module", params=["sd1_dir", "sd2_dir", "sdxl_dir"])
def each(request: pytest.FixtureRequest) -> UNetDenoiser:
    """Each architecture in turn."""
    return load_tiny(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def denoiser(sd1_dir: Path) -> UNetDenoiser:
    """SD 1.x, where the architecture does not matter."""
    return load_tiny(sd1_dir)


def hooks(denoiser: UNetDenoiser) -> int:
    """Forward hooks on all layers."""
    return sum(len(module._forward_hooks) for module in denoiser.weights.modules())


@pytest.mark.parametrize("kind", ["module", "channel", "none"])
def test_stock_diffusers_predicts_what_was_trained(each: UNetDenoiser, tmp_path: Path, kind: MaskKind) -> None:
    """And unloading the LoRA leaves every weight bit-identical.

    That is a claim about weights: diffusers lays them out anew, and what a CPU's kernels add up in another order rounds
    otherwise, so predictions are compared within the tolerance.
    """
    adapter, stored = store(tmp_path / "adapter", each, kind)
    trained, read_back = predict(each, adapter), predict(each, stored.adapter)
    predictions = stock.predict_with_lora(each.files.path, tmp_path / "adapter")
    assert (predictions.loaded - predictions.base).abs().max() > 0.01
    assert torch.allclose(predictions.loaded, trained, rtol=0, atol=TOLERANCE)
    assert torch.allclose(read_back, trained, rtol=0, atol=TOLERANCE)
    assert predictions.restored
    assert torch.allclose(predictions.unloaded, predictions.base, rtol=0, atol=TOLERANCE)


def test_a_process_that_never_imports_spare_predicts_the_same(denoiser: UNetDenoiser, tmp_path: Path) -> None:
    """-I: neither this folder nor the environment can bring the package in."""
    adapter, _ = store(tmp_path / "adapter", denoiser, "channel")
    output = tmp_path / "predictions.safetensors"
    command = [sys.executable, "-I", stock.__file__, str(denoiser.files.path), str(tmp_path / "adapter"), str(output)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    predictions = load_file(output)
    assert torch.allclose(predictions["loaded"], predict(denoiser, adapter), rtol=0, atol=TOLERANCE)
    assert torch.allclose(predictions["base"], predict(denoiser), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["module", "channel", "weight", "none"])
def test_switched_off_the_base_is_what_it_was(each: UNetDenoiser, kind: MaskKind) -> None:
    """Every weight is as it was and no hook stays, so predictions are those of before."""
    weights = {name: tensor.clone() for name, tensor in each.weights.state_dict().items()}
    before, count = predict(each), hooks(each)
    adapter = random_adapter(each, kind)
    assert (predict(each, adapter) - before).abs().max() > 100 * TOLERANCE
    assert torch.allclose(predict(each), before, rtol=0, atol=TOLERANCE)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in each.weights.state_dict().items())
    assert hooks(each) == count


def test_an_error_inside_takes_the_adapter_off(denoiser: UNetDenoiser) -> None:
    """The base is free again whatever happened."""
    before, count = predict(denoiser), hooks(denoiser)
    with pytest.raises(ZeroDivisionError), random_adapter(denoiser, "channel").attached(denoiser):
        _ = 1 / 0
    assert hooks(denoiser) == count
    assert torch.allclose(predict(denoiser), before, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["module", "channel", "weight", "none"])
def test_a_fresh_adapter_changes_nothing(denoiser: UNetDenoiser, kind: MaskKind) -> None:
    """Training starts at the base model."""
    adapter = Adapter.initialise(denoiser, random_masks(denoiser, kind), 4, 4.0, 0)
    assert not any(delta.any() for delta in deltas(adapter).values())
    assert torch.allclose(predict(denoiser, adapter), predict(denoiser), rtol=0, atol=TOLERANCE)


def test_two_adapters_add_up(each: UNetDenoiser) -> None:
    """Both on is one adapter with the sum of their changes, in either order, whatever their masks."""
    first, second = random_adapter(each, "channel", seed=1), random_adapter(each, "weight", seed=2)
    changes = deltas(second)
    total = Adapter({name: DeltaUpdate(delta + changes[name]) for name, delta in deltas(first).items()})
    both = predict(each, first, second)
    assert torch.allclose(both, predict(each, total), rtol=0, atol=TOLERANCE)
    assert torch.allclose(both, predict(each, second, first), rtol=0, atol=TOLERANCE)
    assert not torch.allclose(both, predict(each, first), rtol=0, atol=1e-3)


def test_another_architecture_is_refused(denoiser: UNetDenoiser, sdxl_dir: Path) -> None:
    """The message names layers that are not there, and nothing stays attached."""
    count = hooks(denoiser)
    foreign = random_adapter(load_tiny(sdxl_dir), "channel")
    with pytest.raises(AdapterError, match=r"not in this model \(.*transformer_blocks"), foreign.attached(denoiser):
        pass
    assert hooks(denoiser) == count


def test_another_shape_is_refused(denoiser: UNetDenoiser) -> None:
    """A layer of the same name in a wider model."""
    name = next(iter(denoiser.target_layers()))
    with pytest.raises(AdapterError, match=name), Adapter({name: DeltaUpdate(torch.ones(3, 5))}).attached(denoiser):
        pass


def test_an_empty_adapter_is_refused(denoiser: UNetDenoiser) -> None:
    """It would silently do nothing."""
    with pytest.raises(AdapterError), Adapter({}).attached(denoiser):
        pass


def test_a_model_that_would_not_call_the_hooks_is_refused(sd1_dir: Path) -> None:
    """Compiled before or with fused projections, it would predict as if there were no adapter."""
    denoiser = load_tiny(sd1_dir)
    adapter, before = random_adapter(denoiser, "none"), predict(denoiser)
    denoiser.weights.fuse_qkv_projections()
    with (
        pytest.raises(AdapterError, match=r"UNet2DConditionModel\.down.* unfuse_qkv_projections"),
        adapter.attached(denoiser),
    ):
        pass
    denoiser.weights.unfuse_qkv_projections()
    with adapter.attached(denoiser):
        assert not torch.equal(predict(denoiser), before)
    for compiled in (denoiser.weights.mid_block, denoiser.weights):
        compiled.compile()
        with pytest.raises(AdapterError, match=r"UNet2DConditionModel.* is compiled"), adapter.attached(denoiser):
            pass


def test_a_rank_larger_than_a_layer_is_refused(denoiser: UNetDenoiser) -> None:
    """The message names the value, a layer and the most it allows."""
    with pytest.raises(SettingsError, match=r"rank is 9.*\(8, 8\).*at most 8"):
        Adapter.initialise(denoiser, random_masks(denoiser, "channel"), 9, 8.0, 0)
    assert Adapter.initialise(denoiser, random_masks(denoiser, "channel"), 8, 8.0, 0).updates


@pytest.mark.parametrize("kind", ["module", "channel", "weight"])
def test_nothing_outside_the_mask_moves(denoiser: UNetDenoiser, kind: MaskKind) -> None:
    """Whatever an optimiser writes into A and B."""
    masks = random_masks(denoiser, kind)
    adapter = Adapter.initialise(denoiser, masks, 4, 4.0, 0)
    for parameter in adapter.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(3))
    adapter.project()
    changed = deltas(adapter)
    assert all(not changed[name][~mask.dense()].any() for name, mask in masks.items())
    assert any(changed[name].any() for name in masks)


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    rank=st.integers(1, 4),
    seed=st.integers(0, 999),
    dense=st.booleans(),
)
def test_an_update_is_its_delta(out: int, width: int, rank: int, seed: int, dense: bool) -> None:
    """forward(x) = Δ x for every shape, rank and mask; Δ is scale * M * (B A)."""
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator)
    rows, columns = (torch.rand(size, generator=generator) > 0.4 for size in (out, width))
    entries = torch.rand(out, width, generator=generator) > 0.4 if dense else None
    if entries is not None:
        rows, columns = entries.any(dim=1), entries.any(dim=0)
    mask = LayerMask(rows, columns, entries)
    update = LowRankUpdate(down, up, 0.7, mask)
    inputs = torch.randn(3, width, generator=generator)
    assert update.shape == (out, width)
    assert torch.allclose(update.delta(), 0.7 * mask.dense() * (up @ down), atol=1e-5)
    assert torch.allclose(update(inputs), inputs @ update.delta().T, atol=1e-5)
