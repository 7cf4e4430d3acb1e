"""Model folders with something wrong in them, as downloads, converters and hands leave them: each is one line that says
what, and nearly all of them before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spare_core.errors import ModelError
from spare_core.models.files import find_model
from spare_core.models.loading import load_denoiser

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
INDEX, TOKENIZER = "model_index.json", "tokenizer/tokenizer_config.json"
Change = Callable[[Path], Any]


def says(file: str, **fields: Any) -> Change:
    def change(model: Path) -> None:
        (model / file).write_text(json.dumps({**json.loads((model / file).read_text()), **fields}))

    return change


def holds(file: str, content: bytes) -> Change:
    return lambda model: (model / file).write_bytes(content)


def lacks(name: str) -> Change:
    def change(model: Path) -> None:
        shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()

    return change


def weights(file: str, to: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda model: save_file(to(load_file(model / file)), model / file, {"format": "pt"})


def beginning_with_a_mark(model: Path) -> None:
    (model / "unet/config.json").write_bytes(b"\xef\xbb\xbf" + (model / "unet/config.json").read_bytes())


def cut_off(model: Path) -> None:
    content = (model / UNET).read_bytes()
    (model / UNET).write_bytes(content[: len(content) // 2])


def a_file(model: Path) -> None:
    shutil.rmtree(model / "unet")
    (model / "unet").write_text("")


def no_fast_tokenizer(then: Change) -> Change:
    """``then`` of a tokenizer that is its vocabulary and merges only."""

    def change(model: Path) -> None:
        (model / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
        then(model)

    return change


def a_loop(model: Path) -> None:
    shutil.rmtree(model / "unet")
    (model / "unet").symlink_to("unet")


def nowhere(model: Path) -> None:
    (model / UNET).unlink()
    (model / UNET).symlink_to("/nowhere/file")


FOUND: dict[str, tuple[Change, str]] = {
    "a configuration that is cut off": (holds("unet/config.json", b"{"), r"config\.json cannot be read \(Expecting"),
    "… in UTF-16": (holds("unet/config.json", "{}".encode("utf-16")), r"unet/config\.json cannot be read"),
    "… with a byte order mark": (beginning_with_a_mark, r"unet/config\.json cannot be read \(Unexpected UTF-8 BOM"),
    "… that is a list": (holds("vae/config.json", b"[]"), "holds no configuration"),
    "no configuration of the UNet": (lacks("unet/config.json"), r"unet/config\.json cannot be read \(No such file"),
    "… of the VAE": (lacks("vae/config.json"), r"vae/config\.json cannot be read \(No such file"),
    "… of the text encoder": (lacks("text_encoder/config.json"), r"text_encoder/config\.json cannot be read"),
    "no scheduler": (lacks("scheduler"), r"scheduler_config\.json cannot be read \(No such file"),
    "no tokenizer": (lacks("tokenizer"), r"tokenizer has no vocab\.json; is the download complete"),
    "no vocabulary": (no_fast_tokenizer(lacks("tokenizer/vocab.json")), r"tokenizer has no vocab\.json"),
    "no merges": (no_fast_tokenizer(lacks("tokenizer/merges.txt")), r"tokenizer has no merges\.txt"),
    "a tokenizer without end": (says(TOKENIZER, model_max_length=10**30), "understood: a number up to 32, which the"),
    "… without a length": (says(TOKENIZER, model_max_length=None), "model_max_length is null"),
    "… longer than its encoder": (says(TOKENIZER, model_max_length=77), "write 32 into the file"),
    "an index that is a list": (holds(INDEX, b"[]"), "does not name a pipeline class"),
    "a pipeline of one's own": (says(INDEX, _class_name=["my", "Pipeline"]), "supported: StableDiffusionPipeline"),
    "no pipeline": (says(INDEX, _class_name=None), "supported: StableDiffusionPipeline"),
    "a component of three": (says(INDEX, unet=["a", "b", "c"]), "it takes a library and a class"),
    "a component of one text": (says(INDEX, unet="diffusers"), "names no unet"),
    "SDXL's class on SD's parts": (says(INDEX, _class_name="StableDiffusionXLPipeline"), "text_encoder_2 holds no"),
    "an empty file": (holds(UNET, b""), "is not a readable safetensors file"),
    "half a file": (cut_off, "is not a readable safetensors file .*incomplete"),
    "a header without end": (holds(UNET, (2**62).to_bytes(8, "little")), "is not a readable safetensors file"),
    "a pointer of Git LFS": (holds(UNET, b"version https://git-lfs.github.com/spec/v1\n"), "is not a readable"),
    "a web page": (holds(TEXT, b"<html>Sign in"), "is not a readable safetensors file"),
    "a file in a folder's place": (a_file, "holds no safetensors weights"),
    "a link to itself": (a_loop, "holds no safetensors weights"),
    "a link to nowhere": (nowhere, "holds no safetensors weights"),
    "whole numbers": (weights(UNET, lambda t: {k: v.to(torch.int8) for k, v in t.items()}), "quantized weights"),
    "a quantized UNet": (says("unet/config.json", quantization_config={"quant_method": "x"}), "quantization_config is"),
    "a quantized text encoder": (says("text_encoder/config.json", quantization_config={}), "quantization_config is"),
    "a size that is a text": (says("unet/config.json", sample_size="8"), 'sample_size is "8"'),
    "a size that is none": (says("unet/config.json", sample_size=-8), "sample_size is -8"),
    "a size beyond all memory": (says("unet/config.json", sample_size=10**9), "a number up to 1024"),
    "noise that is a text": (says("scheduler/scheduler_config.json", beta_start="0.1"), 'beta_start is "0.1"'),
    "noise of two steps": (says("scheduler/scheduler_config.json", trained_betas=[0.1, 0.2]), "trained_betas are not"),
    "no steps": (says("scheduler/scheduler_config.json", num_train_timesteps=0), "num_train_timesteps is 0"),
    "no scale": (says("vae/config.json", scaling_factor=None), "scaling_factor is null"),
    "a scale of nothing": (says("vae/config.json", scaling_factor=0), "scaling_factor is 0"),
    "shifted latents": (says("vae/config.json", shift_factor=0.1), "shift_factor is 0.1"),
}  # fmt: skip


def told(ask: Callable[[str], Any], change: Change, said: str, model: Path) -> None:
    """That ``ask`` refuses the model after the change, in one line that people read."""
    change(model)
    with pytest.raises(ModelError, match=said) as caught:
        ask(str(model))
    assert "\n" not in str(caught.value)
    assert "Errno" not in str(caught.value)


@pytest.fixture
def model(sd1_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sd1_dir, tmp_path / "a model, 100 % ü")


@pytest.mark.parametrize("what", FOUND)
def test_it_is_told_before_any_weight_is_read(what: str, model: Path) -> None:
    told(find_model, *FOUND[what], model)


LOADED: dict[str, tuple[Change, str]] = {
    "an empty vocabulary": (
        no_fast_tokenizer(holds("tokenizer/vocab.json", b"{}")), "diffusers cannot load .*out of vocabulary"
    ),
    "a UNet of one's own": (says(INDEX, unet=["my_module", "MyUNet"]), "diffusers cannot load .*MyUNet"),
    "no scheduler of diffusers": (says(INDEX, scheduler=["diffusers", "NoSuch"]), "diffusers cannot load .*NoSuch"),
    "a schedule of another kind": (
        says(INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]), "adds noise otherwise than DDIM"
    ),
    "another text encoder": (says(INDEX, text_encoder=["transformers", "T5EncoderModel"]), "was not loaded from"),
    "a vocabulary of another size": (
        says("text_encoder/config.json", vocab_size=10), "the weights of a text encoder have other sizes"
    ),
    "another width": (says("unet/config.json", cross_attention_dim=64), "expected shape"),
    "names with a prefix": (weights(UNET, lambda t: {f"unet.{k}": v for k, v in t.items()}), "lacks the weight"),
    "a cut weight": (weights(UNET, lambda t: {**t, "conv_in.weight": t["conv_in.weight"][:1]}), "shape"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOADED)
def test_it_is_told_when_it_is_loaded(what: str, model: Path) -> None:
    told(lambda source: load_denoiser(source, "cpu", "float32"), *LOADED[what], model)


READ: dict[str, Change] = {
    "eight bits of storage": weights(UNET, lambda t: {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}),
    "double precision": weights(UNET, lambda t: {k: v.double() for k, v in t.items()}),
    "two precisions": weights(UNET, lambda t: {k: v.half() if "bias" in k else v for k, v in t.items()}),
    "more than is asked for": weights(UNET, lambda t: {**t, "further": torch.zeros(3)}),
    "names of transformers 4": weights(
        TEXT, lambda t: {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in t.items()}
    ),
    "code beside the weights": lambda model: (model / "unet" / "model.py").write_text("raise SystemExit"),
    "code that is asked for": says("text_encoder/config.json", auto_map={"AutoModel": "evil.Model"}),
}


@pytest.mark.parametrize("what", READ)
def test_it_is_read(what: str, model: Path) -> None:
    READ[what](model)
    denoiser = load_denoiser(str(model), "cpu", "float32")
    noise = torch.randn(1, *denoiser.latent_shape())
    predicted = denoiser.predict(noise, torch.tensor([5]), denoiser.encode_prompts(["a cat"]))
    assert torch.isfinite(predicted).all()
