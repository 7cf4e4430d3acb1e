"""The base model that goes along with an adapter: all that stock diffusers needs, whatever form it was kept in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.models import Model
from safetensors.torch import load_file, save_file

from spare_core.adapters.directory import StoredAdapter, load_adapter
from spare_core.errors import ModelError
from spare_core.models.unet import UNetDenoiser
from spare_core.registry.packaging import package
from tests.support.registrations import set_source, write_adapter


@pytest.fixture
def base(sd1_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(sd1_dir, tmp_path / "the base"))


@pytest.fixture
def stored(base: Path, tmp_path: Path, denoiser: UNetDenoiser) -> StoredAdapter:
    """An adapter that was trained on it."""
    folder = write_adapter(tmp_path / "adapter", denoiser, "Packaged").folder
    set_source(folder, str(base))
    return load_adapter(folder)


def weights(base: Path) -> list[Path]:
    return sorted(base.glob("*/*.safetensors"))


def test_a_base_kept_as_a_variant_and_without_its_safety_checker_draws(
    base: Path, stored: StoredAdapter, tmp_path: Path
) -> None:
    for file in weights(base):
        file.rename(file.with_suffix(".fp16.safetensors"))
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (base / "model_index.json").write_text(json.dumps(index))
    (base / "v1-5-pruned.ckpt").write_bytes(b"a whole checkpoint beside the components")
    package(tmp_path / "model", stored, Model())
    bundled = {str(file.relative_to(tmp_path / "model" / "base")) for file in (tmp_path / "model" / "base").rglob("*")}
    assert {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "tokenizer/vocab.json",
            "scheduler/scheduler_config.json", "model_index.json"} <= bundled  # fmt: skip
    assert not [name for name in bundled if name.endswith((".ckpt", ".fp16.safetensors"))]
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    shutil.rmtree(base)
    model = mlflow.pyfunc.load_model(str(tmp_path / "elsewhere"))
    assert model.predict(["a cat"], params={"num_inference_steps": 1})[0].startswith(b"\x89PNG")


def test_shards_of_a_variant_lose_its_name(base: Path, stored: StoredAdapter, tmp_path: Path) -> None:
    """The flavour asks for no variant."""
    for file in weights(base):
        name, tensors = file.name.partition(".")[0], load_file(file)
        shard = f"{name}.fp16-00001-of-00002.safetensors", f"{name}.fp16-00002-of-00002.safetensors"
        places = {key: shard[i % 2] for i, key in enumerate(sorted(tensors))}
        for one in shard:
            save_file(
                {key: tensors[key] for key in places if places[key] == one}, file.with_name(one), {"format": "pt"}
            )
        index = file.with_name(f"{name}.safetensors.index.fp16.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        file.unlink()
    package(tmp_path / "model", stored, Model())
    assert loads(tmp_path / "model")


def test_a_component_that_is_a_pickle_is_not_packed_along(base: Path, stored: StoredAdapter, tmp_path: Path) -> None:
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (base / "model_index.json").write_text(json.dumps(index))
    (base / "safety_checker").mkdir()
    (base / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    package(tmp_path / "model", stored, Model())
    assert not (tmp_path / "model" / "base" / "safety_checker").exists()
    assert loads(tmp_path / "model")


def test_a_base_that_is_not_here_any_more_is_said_so(base: Path, stored: StoredAdapter, tmp_path: Path) -> None:
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="there is no model"):
        package(tmp_path / "model", stored, Model())


def loads(model: Path, **config: str) -> bool:
    """Whether MLflow loads it and it draws."""
    loaded = mlflow.pyfunc.load_model(str(model), model_config=config or None)
    return bool(loaded.predict(["a cat"], params={"num_inference_steps": 1})[0].startswith(b"\x89PNG"))


def test_a_base_that_was_changed_within_the_package_is_not_loaded(
    stored: StoredAdapter, tmp_path: Path, sd2_dir: Path
) -> None:
    package(tmp_path / "model", stored, Model())
    moved = Path(shutil.copytree(tmp_path / "model", tmp_path / "moved"))
    assert loads(moved)
    file = moved / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RuntimeError, match="is not the base model that this adapter was trained for"):
        loads(moved)
    with pytest.raises(RuntimeError, match="is not the base model that this adapter was trained for"):
        loads(moved, base_model=str(sd2_dir))


def hub_cache(folder: Path, name: str, model: Path) -> Path:
    """A model as huggingface_hub keeps what it fetched."""
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.rmtree(snapshot, ignore_errors=True)
    return Path(shutil.copytree(model, snapshot))


def test_a_base_from_a_hub_is_checked_too(
    stored: StoredAdapter, tmp_path: Path, sd1_dir: Path, sd2_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    set_source(stored.folder, "some-org/some-model")
    package(tmp_path / "model", load_adapter(stored.folder), Model())
    assert not (tmp_path / "model" / "base").exists()
    hub_cache(tmp_path / "hub", "some-org/some-model", sd1_dir)
    assert loads(tmp_path / "model")
    hub_cache(tmp_path / "hub", "some-org/some-model", sd2_dir)
    with pytest.raises(RuntimeError, match="some-org/some-model is not the base model that this adapter"):
        loads(tmp_path / "model")
