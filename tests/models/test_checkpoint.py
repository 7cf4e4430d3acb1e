"""Single files, as Civitai has them: read as the directory they would be, or told what they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from spare_core.errors import ModelError
from spare_core.models.files import check_source, find_model
from spare_core.models.loading import load_denoiser
from tests.support.checkpoints import build, save_both
from tests.support.original import write_single_file


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same model as a directory and as one file, by kind."""
    made: dict[str, tuple[Path, Path]] = {}

    def of(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            made[kind] = save_both(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return of


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_single_file_is_the_directory_it_would_be(saved: Any, kind: str) -> None:
    folder, file = saved(kind)
    found, directory = find_model(str(file)), find_model(str(folder))
    assert found.digest() == directory.digest()
    ours, theirs = (load_denoiser(str(one), "cpu", "float32") for one in (file, folder))
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    prompts, times = ["a photograph of an Astronaut, riding", ""], torch.tensor([11, 700])
    assert ours.token_ids(prompts) == theirs.token_ids(prompts)
    with torch.no_grad():
        a, b = (one.predict(noisy, times, one.encode_prompts(prompts)) for one in (ours, theirs))
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert ours.scheduler.config.prediction_type == theirs.scheduler.config.prediction_type
    assert torch.equal(ours.scheduler.alphas_cumprod, theirs.scheduler.alphas_cumprod)
    mine, stock = (DiffusionPipeline.from_pretrained(one) for one in (found.path, folder))
    assert type(mine.scheduler) is type(stock.scheduler)
    pictures = [
        one("a cat", num_inference_steps=2, output_type="np", height=16, width=16,
            generator=torch.Generator().manual_seed(1)).images
        for one in (mine, stock)
    ]  # fmt: skip
    assert abs(pictures[0] - pictures[1]).max() < 1e-3


def test_half_precision_stays_and_mixed_is_not_rounded(tmp_path: Path) -> None:
    pipeline = build("sd1", tmp_path, torch.float16)
    pipeline.vae.to(torch.float32)
    pipeline.save_pretrained(tmp_path / "model")
    file = write_single_file(pipeline, tmp_path / "half.safetensors")
    found = find_model(str(file))
    assert found.digest() == find_model(str(tmp_path / "model")).digest()
    assert {tensor.dtype for _, tensor in found.tensors("vae")} == {torch.float32}


def test_it_is_converted_once_and_again_when_it_changes(saved: Any, tmp_path: Path) -> None:
    _, file = saved("sd1")
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(file.read_bytes())
    first = find_model(str(mine))
    stamp = (first.path / "model_index.json").stat().st_mtime_ns
    assert find_model(str(mine)).path == first.path
    assert (first.path / "model_index.json").stat().st_mtime_ns == stamp
    tensors = load_file(mine)
    name = next(one for one in tensors if one.endswith("attn2.to_k.weight"))
    save_file({**tensors, name: tensors[name] + 1}, mine)
    os.utime(mine, ns=(stamp, stamp))
    assert find_model(str(mine)).digest() != first.digest()


def test_what_was_made_of_files_is_bound_as_what_was_fetched_is(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that nobody uses any more goes when another is made; by another process, since this one keeps its own."""
    _, file = saved("sd1")
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "small"))
    monkeypatch.setenv("SPARE_CACHE_LIMIT", "1k")
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(file.read_bytes())
        ask = f"from spare_core.models.files import find_model; find_model('{tmp_path / name}.safetensors')"
        subprocess.run([sys.executable, "-c", ask], check=True)
    assert len([*(tmp_path / "small").glob("single-file/*/*/model_index.json")]) == 1


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (0, 0, 0, 0)])
@pytest.mark.parametrize("part", [
    "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.down.0.block.0.conv1.weight",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
])  # fmt: skip
def test_weights_of_other_shapes_are_no_traceback(
    saved: Any, tmp_path: Path, part: str, shape: tuple[int, ...]
) -> None:
    _, file = saved("sd1")
    odd = changed(file, tmp_path / "odd.safetensors", **{part.replace(".", "__"): torch.zeros(shape)})
    with pytest.raises(ModelError) as caught:
        find_model(str(odd))
    assert "\n" not in str(caught.value)


def changed(file: Path, to: Path, **changes: torch.Tensor | None) -> Path:
    """The checkpoint without what begins with a key whose value is None, and with the others."""
    gone = tuple(name.replace("__", ".") for name, value in changes.items() if value is None)
    tensors = {name: tensor for name, tensor in load_file(file).items() if not (gone and name.startswith(gone))}
    save_file(tensors | {name.replace("__", "."): one for name, one in changes.items() if one is not None}, to)
    return to


@pytest.mark.parametrize(("names", "said"), [
    (["lora_unet_down_blocks_0_attentions_0.lora_down.weight"], "is a LoRA, not a model"),
    (["unet.down_blocks.0.attn2.to_k.lora_A.weight"], "is a LoRA, not a model"),
    (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "is an SD 3 model"),
    (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "is a FLUX model"),
    (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
    (["emb_params"], "is a textual inversion"),
    (["first_stage_model.decoder.conv_in.weight"], r"holds no denoiser of Stable Diffusion \(only a VAE\)"),
    (["decoder.conv_in.weight"], "holds no denoiser of Stable Diffusion: its names begin with 'decoder"),
    (["model.diffusion_model.out.2.weight"], "holds no VAE: it was saved to be used with another file's"),
    (["model.diffusion_model.out.2.weight", "first_stage_model.x"], "holds no text encoder"),
    (["conditioner.embedders.0.model.ln_final.weight"], "is the refiner of SDXL"),
])  # fmt: skip
def test_what_is_something_else_is_called_by_its_name(tmp_path: Path, names: list[str], said: str) -> None:
    file = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, file)
    with pytest.raises(ModelError, match=said) as caught:
        check_source(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content", "said"), [
    ("model.ckpt", b"\x80\x02", "is a pickle, which can run code"), ("model.txt", b"", "is neither a diffusers direct"),
    ("model.safetensors", b"", "not a readable safetensors"), ("model.safetensors", b"<html>", "not a readable"),
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "not a readable safetensors file"),
])  # fmt: skip
def test_what_is_no_safetensors_file_is_refused_unread(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    for ask in (check_source, find_model):
        with pytest.raises(ModelError, match=said):
            ask(str(tmp_path / name))


def test_an_sd_2_says_what_it_predicts_itself_or_beside_it(saved: Any, tmp_path: Path) -> None:
    folder, file = saved("sd2")
    silent = changed(file, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match=r"does not say whether it predicts noise or velocity; lay .* two\.yaml"):
        check_source(str(silent))
    silent.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}")
    found = find_model(str(silent))
    assert found.digest() == find_model(str(folder)).digest()
    config = json.loads((found.path / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction"
    silent.with_suffix(".yaml").write_text("model: 3")
    with pytest.raises(ModelError, match="beside the model, is no configuration"):
        check_source(str(silent))


def test_an_sdxl_that_was_trained_for_velocity_says_so_by_a_key(saved: Any, tmp_path: Path) -> None:
    _, file = saved("sdxl")
    found = find_model(str(changed(file, tmp_path / "v.safetensors", v_pred=torch.ones(1), ztsnr=torch.ones(1))))
    config = json.loads((found.path / "scheduler" / "scheduler_config.json").read_text())
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_what_is_left_out_is_named_and_nothing_is_kept(saved: Any, tmp_path: Path) -> None:
    _, file = saved("sd1")
    name = "model__diffusion_model__input_blocks__1__1__transformer_blocks__0__attn2__to_k__weight"
    broken = changed(file, tmp_path / "broken.safetensors", **{name: None})
    before = {*Path(os.environ["SPARE_CACHE"]).glob("single-file/*/*/model_index.json")}
    with pytest.raises(ModelError, match=r"attn2\.to_k\.weight"):
        find_model(str(broken))
    assert {*Path(os.environ["SPARE_CACHE"]).glob("single-file/*/*/model_index.json")} == before


def test_an_inpainting_checkpoint_is_refused_as_its_directory_is(saved: Any, tmp_path: Path) -> None:
    _, file = saved("sd1")
    nine = changed(
        file, tmp_path / "nine.safetensors",
        **{"model__diffusion_model__input_blocks__0__0__weight": torch.zeros(32, 9, 3, 3)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="an inpainting model reads more"):
        find_model(str(nine))


def test_another_vocabulary_is_refused(saved: Any, tmp_path: Path) -> None:
    _, file = saved("sd1")
    name = "cond_stage_model__transformer__text_model__embeddings__token_embedding__weight"
    other = changed(file, tmp_path / "other.safetensors", **{name: torch.zeros(300, 64)})
    with pytest.raises(ModelError, match="its text_encoder knows 300 tokens, CLIP's tokenizer 49408"):
        check_source(str(other))
