"""Models of a hub, over HTTP: what is fetched of one, and what is known of it afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.models import Model

from spare_core.adapters.directory import load_adapter, save_adapter
from spare_core.errors import ModelError
from spare_core.models.digest import of_one_variant
from spare_core.models.files import find_model
from spare_core.models.hub import hub_model
from spare_core.models.loading import load_denoiser
from spare_core.registry.packaging import package
from tests.support.adapters import manifest_for, random_adapter
from tests.support.checkpoints import save_both
from tests.support.hub import COMMIT, Hub, hub

NAME = "org/a-model"


@pytest.fixture
def served(sd1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The tiny model on a hub, in two variants and with a checkpoint beside them."""
    folder = shutil.copytree(sd1_dir, tmp_path / "on the hub")
    for file in folder.glob("*/*.safetensors"):
        shutil.copy(file, file.with_name(f"{file.stem}.fp16.safetensors"))
    (folder / "v1-5-pruned.safetensors").write_bytes(b"a whole model")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub cache"))
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "cache"))
    with hub({NAME: folder}) as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            running.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", running.address)
        yield running


def test_of_a_hubs_model_the_variant_that_is_loaded_is_fetched_and_its_commit_kept(
    served: Hub, sd1_dir: Path, tmp_path: Path
) -> None:
    denoiser = load_denoiser(NAME, "cpu", "float32")
    assert denoiser.files.digest() == find_model(str(sd1_dir)).digest()
    assert {name for name in served.given if name.endswith((".safetensors", ".bin"))} == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }  # fmt: skip
    assert (denoiser.files.revision, denoiser.describe()["revision"]) == (COMMIT, COMMIT)
    manifest = manifest_for(denoiser)
    manifest["base"] |= denoiser.describe()
    save_adapter(tmp_path / "adapter", random_adapter(denoiser, "channel"), "unet", manifest)
    model = Model()
    package(tmp_path / "packaged", load_adapter(tmp_path / "adapter"), model)
    assert model.flavors["diffusers"]["base_model_revision"] == COMMIT


def test_a_single_file_of_a_hub_is_a_model(served: Hub, tmp_path: Path) -> None:
    _, file = save_both("sd1", tmp_path)
    shutil.copy(file, served.models[NAME] / "whole.safetensors")
    found = find_model(f"https://huggingface.co/{NAME}/blob/main/whole.safetensors")
    assert served.given == ["whole.safetensors"]
    assert (found.digest(), found.revision) == (find_model(str(file)).digest(), COMMIT)


def test_what_a_hub_has_not_is_told(served: Hub) -> None:
    with pytest.raises(ModelError, match="'org/another' is no local directory, and the hub did not give it"):
        find_model("org/another")


@pytest.mark.parametrize(("source", "revision", "file"), [
    ("https://huggingface.co/org/name/blob/main/a.safetensors", "main", "a.safetensors"),
    ("https://huggingface.co/org/name/resolve/fp16/sub/a b.safetensors?download=true", "fp16", "sub/a b.safetensors"),
])  # fmt: skip
def test_a_file_of_the_hub_is_named_by_its_address(source: str, revision: str, file: str) -> None:
    assert hub_model(source) == ("org/name", revision, file)


UNET, TEXT, VAE = "unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"


@pytest.mark.parametrize(("names", "left_out"), [
    ([f"{part}{one}.safetensors" for part in (UNET, TEXT, VAE) for one in ("", ".fp16", ".non_ema")],
     [f"{part}{one}.safetensors" for part in (UNET, TEXT, VAE) for one in (".fp16", ".non_ema")]),
    ([f"{UNET}.non_ema.safetensors", *(f"{part}.fp16.safetensors" for part in (UNET, TEXT, VAE))],
     [f"{UNET}.non_ema.safetensors"]),
    # Shards without their index are no weights.
    ([f"{UNET}-00001-of-00002.safetensors", f"{UNET}-00002-of-00002.safetensors",
      *(f"{part}.fp16.safetensors" for part in (UNET, TEXT, VAE)), f"{TEXT}.safetensors", f"{VAE}.safetensors"],
     [f"{UNET}-00001-of-00002.safetensors", f"{UNET}-00002-of-00002.safetensors", f"{TEXT}.safetensors",
      f"{VAE}.safetensors"]),
    ([f"{UNET}.safetensors.index.json", f"{UNET}-00001-of-00001.safetensors", f"{TEXT}.safetensors",
      f"{UNET}.safetensors.index.fp16.json", f"{UNET}.fp16-00001-of-00001.safetensors"],
     [f"{UNET}.safetensors.index.fp16.json", f"{UNET}.fp16-00001-of-00001.safetensors"]),
    # No variant is common: everything, and what is there is told.
    ([f"{UNET}.fp16.safetensors", f"{TEXT}.safetensors"], []),
    (["model_index.json", "unet/config.json", "safety_checker/model.fp16.safetensors"], []),
    ([], []),
])  # fmt: skip
def test_of_many_names_those_of_one_variant(names: list[str], left_out: list[str]) -> None:
    assert of_one_variant(names) == [name for name in names if name not in left_out]
