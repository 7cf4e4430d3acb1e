"""A base model is named by its weights alone, and whatever is not a safe, complete, supported model is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spare_core.errors import ModelError
from spare_core.models.digest import ARCHITECTURES, plain_name
from spare_core.models.files import find_model

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"

Tensors = dict[str, Tensor]


@pytest.fixture
def model(sd1_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny SD 1.x that a test may change."""
    return shutil.copytree(sd1_dir, tmp_path / "model")


@pytest.fixture(scope="module")
def digest(sd1_dir: Path) -> str:
    """Digest of the unchanged model."""
    return find_model(str(sd1_dir)).digest()


def digest_of(folder: Path) -> str:
    return find_model(str(folder)).digest()


def rewrite(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change a safetensors file's tensors."""
    tensors = change(load_file(file))
    file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def split(file: Path, parts: int) -> None:
    """Write a safetensors file's tensors into as many files, as diffusers does with large models."""
    tensors, places = load_file(file), {}
    file.unlink()
    for i in range(parts):
        shard = {name: tensors[name] for name in sorted(tensors)[i::parts]}
        name = f"{file.stem}-{i + 1:05}-of-{parts:05}.safetensors"
        save_file(shard, file.with_name(name))
        places |= dict.fromkeys(shard, name)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def toggled(tensors: Tensors) -> Tensors:
    """Names without the ``text_model.`` prefix if they have it, with it if not."""
    prefix = "text_model."
    return {n.removeprefix(prefix) if n.startswith(prefix) else prefix + n: t for n, t in tensors.items()}


# --- the digest ------------------------------------------------------------------------------------------------------


def test_the_digest_is_a_sha256(digest: str) -> None:
    assert len(digest) == 64
    assert int(digest, 16) > 0


def test_the_same_weights_in_another_folder_have_the_same_digest(model: Path, digest: str) -> None:
    assert digest_of(model) == digest
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "timestep_spacing": "linspace"}))
    (model / "notes.txt").write_text("mine")
    assert digest_of(model) == digest


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_the_same_weights_split_into_shards_have_the_same_digest(file: str, model: Path, digest: str) -> None:
    split(model / file, 3)
    assert not (model / file).exists()
    assert digest_of(model) == digest


def test_the_text_encoders_prefix_is_no_part_of_its_names(model: Path, digest: str) -> None:
    before = set(load_file(model / TEXT))
    rewrite(model / TEXT, toggled)
    assert set(load_file(model / TEXT)).isdisjoint(before)
    assert digest_of(model) == digest
    assert plain_name("text_model.encoder.text_model.weight") == "encoder.text_model.weight"


def test_the_order_and_metadata_of_a_file_do_not_matter(model: Path, digest: str) -> None:
    tensors = load_file(model / UNET)
    save_file(dict(reversed(tensors.items())), model / UNET, metadata={"made": "yesterday"})
    assert digest_of(model) == digest


def test_the_autoencoder_is_no_part_of_the_digest(model: Path, digest: str) -> None:
    file = model / "vae/diffusion_pytorch_model.safetensors"
    rewrite(file, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    assert digest_of(model) == digest


def test_a_variants_file_name_does_not_matter(model: Path, digest: str) -> None:
    for component in (*ARCHITECTURES["StableDiffusionPipeline"], "vae"):
        file = next((model / component).glob("*.safetensors"))
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert find_model(str(model)).variant == "fp16"
    assert digest_of(model) == digest


def first_value(tensors: Tensors) -> Tensors:
    name = min(tensors)
    changed = tensors[name].clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(torch.inf))
    return {**tensors, name: changed}


def dtype(tensors: Tensors) -> Tensors:
    name = min(tensors)
    return {**tensors, name: tensors[name].view(torch.int32)}


def shape(tensors: Tensors) -> Tensors:
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2)
    return {**tensors, name: tensors[name].reshape(-1)}


def name_of_one(tensors: Tensors) -> Tensors:
    name = min(tensors)
    return {**{k: v for k, v in tensors.items() if k != name}, f"{name}.other": tensors[name]}


def one_missing(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != min(tensors)}


@pytest.mark.parametrize("file", [UNET, TEXT])
@pytest.mark.parametrize("change", [first_value, dtype, shape, name_of_one, one_missing])
def test_any_change_of_the_weights_changes_the_digest(
    file: str, change: Callable[[Tensors], Tensors], model: Path, digest: str
) -> None:
    rewrite(model / file, change)
    assert digest_of(model) != digest


def test_the_same_tensors_in_another_component_are_another_model(sdxl_dir: Path, tmp_path: Path) -> None:
    swapped = shutil.copytree(sdxl_dir, tmp_path / "swapped")
    one, two = swapped / "text_encoder", swapped / "text_encoder_2"
    common = set(load_file(one / "model.safetensors")) & set(load_file(two / "model.safetensors"))
    rewrite(two / "model.safetensors", lambda tensors: {name: tensors[name] for name in common})
    before = digest_of(swapped)
    one.rename(swapped / "spare")
    two.rename(one)
    (swapped / "spare").rename(two)
    assert digest_of(swapped) != before


def test_both_text_encoders_of_sdxl_are_covered(sdxl_dir: Path, tmp_path: Path) -> None:
    files = find_model(str(sdxl_dir))
    assert files.components == ("unet", "text_encoder", "text_encoder_2")
    changed = shutil.copytree(sdxl_dir, tmp_path / "changed")
    rewrite(changed / "text_encoder_2/model.safetensors", first_value)
    assert digest_of(changed) != files.digest()


def test_the_architectures_are_told_apart(sd1_dir: Path, sd2_dir: Path, sdxl_dir: Path) -> None:
    assert len({digest_of(folder) for folder in (sd1_dir, sd2_dir, sdxl_dir)}) == 3


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(source: object, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        files = find_model(str(source))
        files.digest()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("source", ["no such model", "", "/nowhere/model", "./nowhere", "a/b/c", "-rf/x"])
def test_a_model_that_is_nowhere(source: str) -> None:
    refused(source, "there is no model|no model_index.json")


def test_a_hub_id_offline_is_told_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    refused("someone/some-model", r"'someone/some-model' is no local directory, and the hub did not give it \(.+\)")
    assert time.monotonic() - started < 5


def test_a_folder_without_an_index(model: Path) -> None:
    (model / "model_index.json").unlink()
    refused(model, "no model_index.json")


def test_a_file_is_no_model(model: Path) -> None:
    refused(model / "model_index.json", "neither a diffusers directory nor a .safetensors file")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'"x"', b"\xff"])
def test_an_index_that_names_nothing(content: bytes, model: Path) -> None:
    (model / "model_index.json").write_bytes(content)
    refused(model, "does not name a pipeline class")


@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusionInpaintPipeline", "Evil", ""])
def test_a_pipeline_that_is_not_supported_is_told_what_is(name: str, model: Path) -> None:
    (model / "model_index.json").write_text(json.dumps({"_class_name": name}))
    refused(model, f"holds a {name}; supported: StableDiffusionPipeline, StableDiffusionXLPipeline")


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_a_component_without_weights(component: str, model: Path) -> None:
    shutil.rmtree(model / component)
    refused(model, f"{component} holds no safetensors weights")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "unet.pt"])
def test_pickles_are_never_read(name: str, model: Path) -> None:
    (model / UNET).rename(model / "unet" / name)
    refused(model, f"holds {name}, a pickle; only safetensors are read")


def test_a_pickle_beside_safe_weights_is_ignored(model: Path, digest: str) -> None:
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"anything")
    assert digest_of(model) == digest


def test_safe_weights_under_another_name_are_not_taken_for_the_models(model: Path) -> None:
    (model / UNET).rename(model / "unet" / "lora.safetensors")
    refused(model, "holds no safetensors weights")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
@pytest.mark.parametrize("file", [UNET, TEXT])
def test_a_file_that_was_cut_short(file: str, keep: int, model: Path) -> None:
    content = (model / file).read_bytes()
    (model / file).write_bytes(content[:keep])
    refused(model, r"safetensors is not a readable safetensors file .*fetch it again")


def test_a_file_of_something_else(model: Path) -> None:
    (model / UNET).write_bytes(b"<html>" + b"x" * 1000)
    refused(model, "not a readable safetensors file")


def test_variants_are_not_mixed(model: Path) -> None:
    (model / UNET).rename(model / "unet/diffusion_pytorch_model.fp16.safetensors")
    refused(model, "unet: only as fp16; text_encoder: without a variant")
