"""Model folders as people have them: what is loaded is what diffusers loads, and what cannot be is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from spare_core.adapters.directory import load_adapter, save_adapter
from spare_core.adapters.export import export_adapter
from spare_core.errors import ModelError
from spare_core.models.digest import variants, weight_files
from spare_core.models.files import check_source, find_model
from spare_core.models.hub import hub_model
from spare_core.models.loading import load_denoiser
from tests.support.adapters import load_tiny, manifest_for, random_adapter

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path: Path, sd1_dir: Path) -> Path:
    return shutil.copytree(sd1_dir, tmp_path / "model")


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], to: str = "") -> None:
    """The file with other tensors, in its place or under another name beside it."""
    save_file(change(load_file(file)), file.with_name(to or file.name), {"format": "pt"})


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def shifted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in tensors.items()}


def sharded(
    file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], variant: str = ""
) -> None:
    """Two shards and their index beside ``file``."""
    stem, infix = file.name.partition(".")[0], f".{variant}" if variant else ""
    tensors, places = change(load_file(file)), {}
    for i in range(2):
        name = f"{stem}{infix}-0000{i + 1}-of-00002.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::2]}
        save_file(part, file.with_name(name), {"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = file.with_name(f"{stem}.safetensors.index{infix}.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def read(files: list[Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("file", "kind"), [(UNET, UNet2DConditionModel), (TEXT, CLIPTextModel)])
def test_of_leftovers_of_an_earlier_save_those_count_that_the_library_loads(model: Path, file: str, kind: Any) -> None:
    """diffusers takes the shards that an index names, transformers the one file; the other would be another digest."""
    folder = (model / file).parent
    sharded(model / file, shifted)
    loaded = kind.from_pretrained(folder).state_dict()
    ours = read(weight_files(folder, None))
    strip = {name.removeprefix("text_model."): tensor for name, tensor in loaded.items()}
    assert all(torch.equal(strip[name.removeprefix("text_model.")], tensor) for name, tensor in ours.items())
    load_denoiser(str(model), "cpu", "float32")


def test_shards_that_no_index_names_are_no_weights(model: Path) -> None:
    sharded(model / UNET, dict)
    (model / UNET).unlink()
    assert len(weight_files(model / "unet", None)) == 2
    (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match="unet holds no safetensors weights"):
        find_model(str(model))


@pytest.mark.parametrize(("content", "said"), [
    ("{", "is no index of shards"), ('{"weight_map": {"a": "../../secret"}}', "names the shard '../../secret'"),
    ('{"weight_map": {"a": "gone.safetensors"}}', "names the shard 'gone.safetensors', which is not there"),
    ('{"weight_map": {"a": 3}}', "names the shard 3"), ("[]", "is no index of shards"),
])  # fmt: skip
def test_an_index_that_names_what_is_not_there_is_refused(model: Path, content: str, said: str) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=said):
        find_model(str(model))


@pytest.mark.parametrize("variant", ["bf16", "fp16", "ema"])
def test_any_variant_is_loaded_where_it_is_all_there_is(model: Path, variant: str) -> None:
    before = load_tiny(model).files.digest()
    for file in (UNET, TEXT, VAE):
        (model / file).rename((model / file).with_suffix(f".{variant}.safetensors"))
    denoiser = load_tiny(model)
    assert (denoiser.files.variant, denoiser.files.digest()) == (variant, before)


def test_of_several_variants_the_plain_one_comes_first_then_fp16(model: Path) -> None:
    for name in ("zz", "fp16", "bf16"):
        rewrite(model / UNET, dict, f"diffusion_pytorch_model.{name}.safetensors")
    assert variants(model / "unet") == [None, "fp16", "bf16", "zz"]


def test_sharded_variants_are_merged_to_what_loads_with_no_arguments(model: Path, tmp_path: Path) -> None:
    for file in (UNET, TEXT, VAE):
        sharded(model / file, dict, "fp16")
        (model / file).unlink()
    base = load_tiny(model)
    save_adapter(tmp_path / "adapter", random_adapter(base, "channel"), "unet", manifest_for(base))
    export_adapter(load_adapter(tmp_path / "adapter"), "merged", tmp_path / "merged", str(model))
    assert DiffusionPipeline.from_pretrained(tmp_path / "merged").unet is not None


def test_what_a_model_lists_but_has_no_weights_of_is_not_in_what_is_delivered(model: Path, tmp_path: Path) -> None:
    """A safety checker of which only the configuration was fetched: stock tools would not load the merged model."""
    edit(
        model / "model_index.json", requires_safety_checker=True,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )  # fmt: skip
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "config.json").write_text("{}")
    base = load_tiny(model)
    assert base.files.absent() == ["safety_checker"]
    save_adapter(tmp_path / "adapter", random_adapter(base, "channel"), "unet", manifest_for(base))
    report = export_adapter(load_adapter(tmp_path / "adapter"), "merged", tmp_path / "merged", str(model))
    assert "safety_checker" in report["left_out"]
    index = json.loads((tmp_path / "merged" / "model_index.json").read_text())
    assert (index["safety_checker"], index["requires_safety_checker"]) == ([None, None], False)
    assert DiffusionPipeline.from_pretrained(tmp_path / "merged").safety_checker is None


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", ".", ""])
def test_a_component_is_no_path(model: Path, name: str) -> None:
    """It is copied to where it says."""
    edit(model / "model_index.json", **{name: ["diffusers", "AutoencoderKL"]})
    with pytest.raises(ModelError, match="names a component"):
        find_model(str(model))


def test_a_part_that_is_listed_but_not_there_at_all_is_left_out(model: Path, tmp_path: Path) -> None:
    edit(model / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    base = load_tiny(model)
    assert base.files.absent() == ["feature_extractor"]
    save_adapter(tmp_path / "adapter", random_adapter(base, "channel"), "unet", manifest_for(base))
    export_adapter(load_adapter(tmp_path / "adapter"), "merged", tmp_path / "merged", str(model))
    assert DiffusionPipeline.from_pretrained(tmp_path / "merged").feature_extractor is None


def without(word: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if word not in name}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = sorted(tensors)[0]
    return {**tensors, first: tensors[first] * float("nan")}


@pytest.mark.parametrize(("file", "change", "said"), [
    (UNET, without("attn2.to_k"), "unet lacks the weight '.*attn2.to_k.weight' and"),
    (VAE, without("decoder.conv_in.bias"), "vae lacks the weight 'decoder.conv_in.bias', which its config.json"),
    (TEXT, without("token_embedding"), "text_encoder: weight '.*token_embedding.weight' was not loaded"),
    (UNET, with_nan, "unet: weight '.*' has values that are not finite"),
    (TEXT, with_nan, "text_encoder: weight '.*' has values that are not finite"),
    (VAE, with_nan, "vae: weight '.*' has values that are not finite"),
])  # fmt: skip
def test_weights_that_are_missing_or_no_numbers_are_named(model: Path, file: str, change: Any, said: str) -> None:
    rewrite(model / file, change)
    with pytest.raises(ModelError, match=said) as caught:
        load_denoiser(str(model), "cpu", "float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [None, None]])
def test_a_model_that_was_published_without_its_text_encoder_is_told(model: Path, value: Any) -> None:
    edit(model / "model_index.json", text_encoder=value)
    shutil.rmtree(model / "text_encoder")
    with pytest.raises(ModelError, match=r"model_index.json names no text_encoder .*published without"):
        find_model(str(model))


@pytest.mark.parametrize("value", [["diffusers", "NoSuchModel"], ["diffusers", "os"], ["evil", "UNet2DConditionModel"]])
def test_an_index_that_names_another_class_is_one_line(model: Path, value: list[str]) -> None:
    edit(model / "model_index.json", unet=value)
    with pytest.raises(ModelError) as caught:
        load_denoiser(str(model), "cpu", "float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "name", "revision"), [
    ("org/name", "org/name", None), ("org/name@fp16", "org/name", "fp16"),
    ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
    ("https://huggingface.co/org/na.me", "org/na.me", None), ("https://huggingface.co/org/name/", "org/name", None),
    ("https://hf.co/org/name/tree/main", "org/name", "main"),
    ("https://huggingface.co/org/name/tree/fp16?not-for-all=1", "org/name", "fp16"),
])  # fmt: skip
def test_a_hubs_model_is_named_as_people_do(source: str, name: str, revision: str | None) -> None:
    assert hub_model(source) == (name, revision, None)


@pytest.mark.parametrize(
    "source", ["", "name", "./org/name", "a/b/c", "org/name@", "https://example.org/org/name", "../x"]
)
def test_what_cannot_be_on_the_hub_is_not_looked_for_there(source: str) -> None:
    assert hub_model(source) is None


def test_the_home_folder_is_understood_and_a_part_of_a_directory_answered(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/model").path == model
    for ask in (check_source, find_model):
        with pytest.raises(ModelError, match=rf"is one part of the diffusers directory {model}; give that"):
            ask(str(model / UNET))
