"""The base model that goes along with an adapter: all that stock diffusers needs, whatever form it was kept in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.models import Model

from spare_core.artifact import StoredAdapter, load_adapter
from spare_core.denoiser import UNetDenoiser
from spare_core.errors import ModelError
from spare_core.registry.packaging import package
from tests.registrations import set_source, write_adapter


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


def test_shards_of_a_variant_are_refused_with_what_to_do(base: Path, stored: StoredAdapter, tmp_path: Path) -> None:
    for file in weights(base):
        file.rename(file.with_suffix(".fp16.safetensors"))
    vae = base / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copyfile(vae, vae.with_name("diffusion_pytorch_model.fp16-00001-of-00001.safetensors"))
    with pytest.raises(ModelError, match=r"shards of the variant 'fp16'"):
        package(tmp_path / "model", stored, Model())


def test_a_component_that_is_a_pickle_is_not_packed_along(base: Path, stored: StoredAdapter, tmp_path: Path) -> None:
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (base / "model_index.json").write_text(json.dumps(index))
    (base / "safety_checker").mkdir()
    (base / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="as a pickle only"):
        package(tmp_path / "model", stored, Model())


def test_a_base_that_is_not_here_any_more_is_said_so(base: Path, stored: StoredAdapter, tmp_path: Path) -> None:
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="there is no model"):
        package(tmp_path / "model", stored, Model())
