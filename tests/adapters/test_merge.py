"""A merged model is the base's own files but for the erased weights, and needs nothing of ours to load."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from spare_core.adapters.card import CARD
from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter
from spare_core.adapters.export import export_adapter
from spare_core.errors import AdapterError, ModelError, OutputError, SettingsError
from spare_core.models.unet import UNetDenoiser
from tests.support import stock
from tests.support.adapters import deltas, load_tiny, manifest_for, measured_error, predict, random_adapter, store


@pytest.fixture(scope="module", params=["sd1_dir", "sd2_dir", "sdxl_dir"])
def each(request: pytest.FixtureRequest) -> UNetDenoiser:
    """Each architecture in turn."""
    return load_tiny(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def sd1(sd1_dir: Path) -> UNetDenoiser:
    """SD 1.x."""
    return load_tiny(sd1_dir)


@pytest.fixture(scope="module")
def lora(sd1: UNetDenoiser, tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    """An SD 1.x adapter with a channel mask."""
    return store(tmp_path_factory.mktemp("lora") / "adapter", sd1, "channel")[1]


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["channel", "weight"])
def test_a_merged_model_needs_no_adapter(each: UNetDenoiser, tmp_path: Path, kind: Any) -> None:
    """Stock diffusers loads it and predicts the same; only the UNet's weights differ from the base's files."""
    adapter, stored = store(tmp_path / "adapter", each, kind)
    report = export_adapter(stored, "merged", tmp_path / "merged", str(each.files.path))
    predicted = stock.predict(stock.load_pipeline(tmp_path / "merged"))
    assert torch.allclose(predicted, predict(each, adapter), rtol=0, atol=1e-4)
    base = {path.relative_to(each.files.path) for path in each.files.path.rglob("*") if path.is_file()}
    assert {
        path.relative_to(tmp_path / "merged") for path in (tmp_path / "merged").rglob("*") if path.is_file()
    } == base | {Path(CARD)}
    differing = [name for name in base if digest(each.files.path / name) != digest(tmp_path / "merged" / name)]
    assert differing == [Path("unet/diffusion_pytorch_model.safetensors")]
    assert report["left_out"] == []
    assert report["relative_error"]["overall"] < 1e-6
    assert report["sha256"] == load_tiny(tmp_path / "merged").files.digest() != each.files.digest()


def test_merging_changes_only_the_adapters_weights(lora: StoredAdapter, sd1: UNetDenoiser, tmp_path: Path) -> None:
    """Each by its delta; every other tensor keeps its bits."""
    export_adapter(lora, "merged", tmp_path / "merged", str(sd1.files.path))
    name = "unet/diffusion_pytorch_model.safetensors"
    base, merged = load_file(sd1.files.path / name), load_file(tmp_path / "merged" / name)
    changes = {f"{layer}.weight": delta for layer, delta in deltas(lora.adapter).items()}
    assert list(base) == list(merged)
    for key, tensor in base.items():
        if key in changes:
            assert torch.allclose(merged[key], tensor + changes[key], rtol=0, atol=1e-6)
        else:
            assert torch.equal(merged[key], tensor)


@pytest.fixture
def half_model(sd1: UNetDenoiser, tmp_path: Path) -> Path:
    """SD 1.x as a fp16 variant, as downloads often are, with everything else that may lie in such a folder."""
    folder = tmp_path / "half"
    pipeline = StableDiffusionPipeline.from_pretrained(sd1.files.path, safety_checker=None).to(dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16")
    for stray in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
                  "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "flax/model.msgpack", "README.md"):  # fmt: skip
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_text("the base's own weights, perhaps")
    return folder


def test_a_half_precision_base_stays_half_and_no_base_weights_go_along(half_model: Path, tmp_path: Path) -> None:
    """What rounding makes of the update is reported; the un-erased denoiser is in no file of the merged folder."""
    base = load_tiny(half_model)
    adapter = random_adapter(base, "channel")
    save_adapter(tmp_path / "adapter", adapter, "unet", manifest_for(base))
    report = export_adapter(load_adapter(tmp_path / "adapter"), "merged", tmp_path / "merged", str(half_model))
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    plain = name.replace(".fp16", "")
    before, after = load_file(half_model / name), load_file(tmp_path / "merged" / plain)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    wanted = {layer: delta for layer, delta in deltas(adapter).items() if delta.any()}
    applied = {layer: after[f"{layer}.weight"].float() - before[f"{layer}.weight"].float() for layer in wanted}
    overall, worst = measured_error(applied, wanted)
    assert report["relative_error"]["overall"] == pytest.approx(overall, rel=1e-3)
    assert report["relative_error"]["worst"] == pytest.approx(worst, rel=1e-3)
    assert 1e-6 < overall < 1e-2
    assert report["left_out"] == [
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "flax", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "merged" / "README.base.md").is_file(), "it has the licence"
    assert sorted(path.name for path in (tmp_path / "merged" / "unet").iterdir()) == ["config.json", Path(plain).name]
    assert torch.allclose(predict(load_tiny(tmp_path / "merged")), predict(base, adapter), rtol=0, atol=1e-2)


def test_shards_stay_shards(lora: StoredAdapter, sd1: UNetDenoiser, tmp_path: Path) -> None:
    """Each weight is changed where it lies, whichever file that is."""
    shutil.copytree(sd1.files.path, tmp_path / "sharded", ignore=shutil.ignore_patterns("unet"))
    sd1.weights.save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="100KB")
    export_adapter(lora, "merged", tmp_path / "merged", str(tmp_path / "sharded"))
    shards = sorted(path.name for path in (tmp_path / "sharded" / "unet").iterdir())
    assert len(shards) > 3
    assert sorted(path.name for path in (tmp_path / "merged" / "unet").iterdir()) == shards
    predicted = stock.predict(stock.load_pipeline(tmp_path / "merged"))
    assert torch.allclose(predicted, predict(sd1, lora.adapter), rtol=0, atol=1e-4)


def test_merging_into_another_base_is_refused(lora: StoredAdapter, sd2_dir: Path, tmp_path: Path) -> None:
    """Unless asked for, where the layers fit."""
    with pytest.raises(ModelError, match="was trained for the base model"):
        export_adapter(lora, "merged", tmp_path / "merged", str(sd2_dir))
    assert list(tmp_path.iterdir()) == []
    export_adapter(lora, "merged", tmp_path / "merged", str(sd2_dir), any_base=True)
    assert (tmp_path / "merged" / "model_index.json").is_file()


def test_layers_that_do_not_fit_are_refused(lora: StoredAdapter, sdxl_dir: Path, tmp_path: Path) -> None:
    """Nothing is left of the attempt."""
    with pytest.raises(AdapterError, match="layer down_blocks"):
        export_adapter(lora, "merged", tmp_path / "merged", str(sdxl_dir), any_base=True)
    assert list(tmp_path.iterdir()) == []


def test_merging_needs_a_model(lora: StoredAdapter, tmp_path: Path) -> None:
    """One that exists."""
    with pytest.raises(SettingsError, match="--model"):
        export_adapter(lora, "merged", tmp_path / "merged", None)
    with pytest.raises(ModelError, match="there is no model"):
        export_adapter(lora, "merged", tmp_path / "merged", str(tmp_path / "absent"))


def test_a_model_is_not_merged_into_itself(lora: StoredAdapter, sd1: UNetDenoiser) -> None:
    """Neither over nor inside its own directory."""
    before = sorted(sd1.files.path.rglob("*"))
    for output in (sd1.files.path, sd1.files.path / "merged", sd1.files.path / "vae" / "merged"):
        with pytest.raises(OutputError):
            export_adapter(lora, "merged", output, str(sd1.files.path))
    assert sorted(sd1.files.path.rglob("*")) == before
