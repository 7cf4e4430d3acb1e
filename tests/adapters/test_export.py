"""Every exported form applies what was trained, or says by how much it does not; and no tool's names are guessed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from spare_core.adapters.card import CARD
from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter
from spare_core.adapters.export import FORMATS, export_adapter, nearest_low_rank, sgm_path
from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.adapters.manifest import LORA, SPARSE
from spare_core.errors import AdapterError, OutputError, SettingsError, StorageError
from spare_core.models.unet import UNetDenoiser
from tests.support import stock
from tests.support.adapters import deltas, load_tiny, manifest_for, measured_error, predict, random_masks, store

TOLERANCE = 1e-5
ENDS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def sd1(sd1_dir: Path) -> UNetDenoiser:
    """SD 1.x."""
    return load_tiny(sd1_dir)


@pytest.fixture(scope="module")
def sdxl(sdxl_dir: Path) -> UNetDenoiser:
    """SDXL."""
    return load_tiny(sdxl_dir)


@pytest.fixture(scope="module", params=["sd1_dir", "sd2_dir", "sdxl_dir"])
def each(request: pytest.FixtureRequest) -> UNetDenoiser:
    """Each architecture in turn."""
    return load_tiny(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def lora(sd1: UNetDenoiser, tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    """An SD 1.x adapter with a channel mask."""
    return store(tmp_path_factory.mktemp("lora") / "adapter", sd1, "channel")[1]


@pytest.fixture(scope="module")
def weight(sd1: UNetDenoiser, tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    """An SD 1.x adapter with a weight mask."""
    return store(tmp_path_factory.mktemp("weight") / "adapter", sd1, "weight")[1]


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def peft_deltas(path: Path) -> dict[str, Tensor]:
    """B A of a diffusers LoRA file, by module path."""
    tensors = load_file(path)
    stems = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    assert len(tensors) == 2 * len(stems)
    return {
        stem.removeprefix("unet."): tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
        for stem in stems
    }


def kohya_deltas(path: Path) -> dict[str, Tensor]:
    """alpha / r * up down of a kohya file, by its own names: the rule of kohya's and ComfyUI's loaders."""
    tensors = load_file(path)
    stems = [key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")]
    assert len(tensors) == 3 * len(stems)
    found = {}
    for stem in stems:
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        assert down.ndim == up.ndim == 2, "a Linear layer's LoRA has two dimensions"
        assert up.shape[1] == down.shape[0]
        assert tensors[f"{stem}.alpha"].shape == ()
        found[stem] = tensors[f"{stem}.alpha"] / len(down) * (up @ down)
    return found


def kohya_paths_sd(unet: nn.Module) -> dict[str, str]:
    """SD 1.x and 2.x: every attention projection's module path, each step of it joined by an underscore."""
    return {
        name: "_".join(["lora", "unet", *name.split(".")])
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(ENDS) and "attn" in name
    }


def kohya_paths_sdxl(unet: Any) -> dict[str, str]:
    """SDXL: found by walking the model's own blocks as the original code builds them, one number a step."""
    stems: dict[str, str] = {"mid_block.attentions.0": "middle_block_1"}
    step = 1  # input_blocks 0 is conv_in
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            stems[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks_{step}_1"
            step += 1
        step += 0 if block.downsamplers is None else len(block.downsamplers)
    step = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            stems[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks_{step}_1"
            step += 1
    named = {}
    for stem, original in stems.items():
        for name in kohya_paths_sd(unet):
            if name.startswith(f"{stem}."):
                named[name] = f"lora_unet_{original}_{name.removeprefix(stem + '.').replace('.', '_')}"
    return named


# diffusers


def test_a_lora_adapter_is_exported_byte_for_byte(lora: StoredAdapter, tmp_path: Path) -> None:
    """What was digested and verified is what is handed on."""
    report = export_adapter(lora, "diffusers", tmp_path / "out", None)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {LORA, CARD}
    assert (tmp_path / "out" / LORA).read_bytes() == (lora.folder / LORA).read_bytes()
    assert report == {
        "format": "diffusers",
        "path": str(tmp_path / "out"),
        "adapter_sha256": lora.sha256,
        "keys": 2 * len(lora.adapter.updates),
        "sha256": lora.sha256,
        "relative_error": None,
    }


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_weight_mask_exports_with_the_error_it_makes(weight: StoredAdapter, tmp_path: Path, rank: int) -> None:
    """The reported error is the one measured on the file, and no rank-r approximation makes a smaller one."""
    report = export_adapter(weight, "diffusers", tmp_path / "out", None, rank=rank)
    applied, wanted = peft_deltas(tmp_path / "out" / LORA), deltas(weight.adapter)
    overall, worst = measured_error(applied, wanted)
    error = report["relative_error"]
    assert error["overall"] == pytest.approx(overall, rel=1e-4)
    assert error["worst"] == pytest.approx(worst, rel=1e-4)
    layer = error["worst_layer"]
    assert measured_error({layer: applied[layer]}, wanted)[0] == pytest.approx(worst, rel=1e-4)
    tails = torch.cat([torch.linalg.svdvals(wanted[name].double())[rank:] for name in applied])
    sizes = torch.stack([wanted[name].double().norm() for name in applied])
    assert overall == pytest.approx(float(tails.norm() / sizes.norm()), rel=1e-4)
    assert 0 < overall < 1
    json.dumps(report, allow_nan=False)


def test_the_approximation_is_what_stock_diffusers_applies(
    weight: StoredAdapter, sd1: UNetDenoiser, tmp_path: Path
) -> None:
    """Rank 16 is more than some layers have: padded, so that every layer has the same and none is scaled."""
    report = export_adapter(weight, "diffusers", tmp_path / "out", None)
    assert report["relative_error"]["overall"] < 1e-5
    ranks = {len(tensor) for key, tensor in load_file(tmp_path / "out" / LORA).items() if "lora_A" in key}
    assert ranks == {16}
    predictions = stock.predict_with_lora(sd1.files.path, tmp_path / "out")
    assert torch.allclose(predictions.loaded, predict(sd1, weight.adapter), rtol=0, atol=TOLERANCE)
    assert predictions.restored


def test_a_layer_of_low_rank_is_approximated_exactly() -> None:
    """Also beyond its rank, and where the rank asked for is more than the layer has."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(5, 2, generator=generator) @ torch.randn(2, 7, generator=generator)
    for rank in (2, 4, 9):
        down, up = nearest_low_rank(delta, rank)
        assert (down.shape, up.shape) == ((rank, 7), (5, rank))
        assert torch.allclose(up @ down, delta, atol=1e-5)


# kohya


@pytest.mark.parametrize("kind", ["none", "module", "channel"])
def test_kohya_names_shapes_and_scale(each: UNetDenoiser, tmp_path: Path, kind: Any) -> None:
    """Every attention projection has its name, and the file is the adapter."""
    adapter, stored = store(tmp_path / "adapter", each, kind)
    report = export_adapter(stored, "kohya", tmp_path / "kohya.safetensors", None)
    is_xl = manifest_for(each)["base"]["pipeline"] == "StableDiffusionXLPipeline"
    names = (kohya_paths_sdxl if is_xl else kohya_paths_sd)(each.weights)
    assert names.keys() == each.target_layers().keys()
    assert len(set(names.values())) == len(names)
    applied, wanted = kohya_deltas(tmp_path / "kohya.safetensors"), deltas(adapter)
    changing = [name for name, delta in wanted.items() if delta.any()]
    assert applied.keys() == {names[name] for name in changing}
    assert all(torch.allclose(applied[names[name]], wanted[name], rtol=0, atol=1e-6) for name in changing)
    assert len(changing) == len(names) or kind != "none"
    assert report["keys"] == 3 * len(changing)
    assert report["relative_error"] is None
    assert report["sha256"] == digest(tmp_path / "kohya.safetensors")


def test_the_scale_of_an_adapter_in_memory_is_folded_in(sd1: UNetDenoiser, tmp_path: Path) -> None:
    """On disk it is 1 already."""
    adapter, stored = store(tmp_path / "adapter", sd1, "none")
    assert {update.scale for update in adapter.updates.values() if isinstance(update, LowRankUpdate)} == {1.5}
    in_memory = StoredAdapter(stored.folder, stored.manifest, adapter)
    for name, one in (("disk", stored), ("memory", in_memory)):
        export_adapter(one, "kohya", tmp_path / f"{name}.safetensors", None)
    assert (tmp_path / "disk.safetensors").read_bytes() == (tmp_path / "memory.safetensors").read_bytes()


def test_stock_diffusers_reads_the_kohya_file(each: UNetDenoiser, tmp_path: Path) -> None:
    """Its own converter knows the original names of SDXL too."""
    adapter, stored = store(tmp_path / "adapter", each, "channel")
    export_adapter(stored, "kohya", tmp_path / "kohya.safetensors", None)
    predictions = stock.predict_with_lora(each.files.path, tmp_path / "kohya.safetensors")
    assert (predictions.loaded - predictions.base).abs().max() > 0.01
    assert torch.allclose(predictions.loaded, predict(each, adapter), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("attention", "original"),
    [
        ("down_blocks.1.attentions.0", "input_blocks.4.1"),
        ("down_blocks.1.attentions.1", "input_blocks.5.1"),
        ("down_blocks.2.attentions.0", "input_blocks.7.1"),
        ("down_blocks.2.attentions.1", "input_blocks.8.1"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("up_blocks.0.attentions.0", "output_blocks.0.1"),
        ("up_blocks.0.attentions.2", "output_blocks.2.1"),
        ("up_blocks.1.attentions.0", "output_blocks.3.1"),
        ("up_blocks.1.attentions.2", "output_blocks.5.1"),
    ],
)
@pytest.mark.parametrize("rest", ["transformer_blocks.9.attn2.to_k", "transformer_blocks.0.attn1.to_out.0", "proj_in"])
def test_the_released_sdxl_has_its_well_known_names(attention: str, original: str, rest: str) -> None:
    """Attention in input_blocks 4, 5, 7, 8, in the middle, and in output_blocks 0 to 5."""
    assert sgm_path(f"{attention}.{rest}", [2, 2, 2]) == f"{original}.{rest}"


@pytest.mark.parametrize("layers", [(1, 1, 1), (2, 2, 2), (1, 2, 3), (3, 1, 2)])
def test_original_names_of_any_block_structure(layers: tuple[int, ...]) -> None:
    """Against the blocks that diffusers builds for it."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 4, 4),
        layers_per_block=layers,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    )
    walked = kohya_paths_sdxl(unet)
    assert walked.keys() == kohya_paths_sd(unet).keys()
    assert {name: "lora_unet_" + sgm_path(name, layers).replace(".", "_") for name in walked} == walked


@pytest.mark.parametrize(
    "name",
    ["conv_in", "down_blocks.3.attentions.0.to_q", "up_blocks.0.attentions.3.to_q", "down_blocks.0.resnets.0.conv1"],
)
def test_a_layer_without_an_original_name_is_refused(name: str) -> None:
    """Rather than given a name that nothing looks up."""
    with pytest.raises(AdapterError, match=name):
        sgm_path(name, [2, 2, 2])


def test_kohya_of_sdxl_needs_the_block_structure(sdxl: UNetDenoiser, tmp_path: Path) -> None:
    """An adapter written without it is told so; one without the pipeline's name too."""
    _, stored = store(tmp_path / "adapter", sdxl, "channel")
    del stored.manifest["base"]["unet"]
    with pytest.raises(AdapterError, match="layers_per_block"):
        export_adapter(stored, "kohya", tmp_path / "kohya.safetensors", None)
    del stored.manifest["base"]["pipeline"]
    with pytest.raises(AdapterError, match="StableDiffusionXLPipeline"):
        export_adapter(stored, "kohya", tmp_path / "kohya.safetensors", None)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_kohya_of_a_weight_mask_reports_its_error(weight: StoredAdapter, sd1: UNetDenoiser, tmp_path: Path) -> None:
    """The same approximation as for diffusers."""
    report = export_adapter(weight, "kohya", tmp_path / "kohya.safetensors", None, rank=2)
    names, wanted = kohya_paths_sd(sd1.weights), deltas(weight.adapter)
    applied = kohya_deltas(tmp_path / "kohya.safetensors")
    overall, _ = measured_error({name: applied[names[name]] for name in wanted}, wanted)
    assert report["relative_error"]["overall"] == pytest.approx(overall, rel=1e-4)


# sparse


@pytest.mark.parametrize("kind", ["channel", "weight"])
def test_a_sparse_delta_is_exact(each: UNetDenoiser, tmp_path: Path, kind: Any) -> None:
    """Bit for bit what the adapter adds, as a file that is itself an adapter's."""
    _, stored = store(tmp_path / "adapter", each, kind)
    report = export_adapter(stored, "sparse", tmp_path / "out", None)
    tensors, wanted = load_file(tmp_path / "out" / SPARSE), deltas(stored.adapter)
    assert len(tensors) == 3 * len(wanted) == report["keys"]
    for name, delta in wanted.items():
        rebuilt = torch.zeros(tensors[f"{name}.shape"].tolist())
        rebuilt.view(-1)[tensors[f"{name}.indices"].long()] = tensors[f"{name}.values"]
        assert torch.equal(rebuilt, delta)
        assert (tensors[f"{name}.indices"].diff() > 0).all()
    assert report["sha256"] == digest(tmp_path / "out" / SPARSE)
    if kind == "weight":
        assert report["sha256"] == stored.sha256


# Any format


def output_for(format: str, folder: Path) -> Path:
    """A fitting name."""
    return folder / ("out.safetensors" if format == "kohya" else "out")


@pytest.mark.parametrize("format", FORMATS)
def test_what_exists_is_never_overwritten(lora: StoredAdapter, sd1: UNetDenoiser, tmp_path: Path, format: str) -> None:
    """A file, a folder, an empty folder, a dangling link."""
    output = output_for(format, tmp_path)
    for make in (lambda: output.write_text("mine"), output.mkdir, lambda: output.symlink_to(tmp_path / "nowhere")):
        make()
        with pytest.raises(OutputError, match="exists"):
            export_adapter(lora, format, output, str(sd1.files.path))
        if output.is_file():
            assert output.read_text() == "mine"
        output.rmdir() if output.is_dir() else output.unlink()


@pytest.mark.parametrize(
    ("format", "call"),
    [
        *(("diffusers", call) for call in ("os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.rename")),
        *(("kohya", call) for call in ("os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.replace")),
        *(("sparse", call) for call in ("os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.rename")),
        *(
            ("merged", call)
            for call in ("os.fsync", "shutil.copyfile", "pathlib.Path.write_text", "pathlib.Path.rename")
        ),
    ],
)
def test_a_full_disk_leaves_nothing_behind(
    weight: StoredAdapter, sd1: UNetDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, call: str
) -> None:
    """Wherever it fills up."""

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call, no_space)
    with pytest.raises(StorageError, match="No space left"):
        export_adapter(weight, format, output_for(format, tmp_path), str(sd1.files.path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_adapter_gives_the_same_bytes(
    weight: StoredAdapter, sd1: UNetDenoiser, tmp_path: Path, format: str
) -> None:
    """And the report's digest is that of the bytes."""
    reports = []
    for name in ("a", "b"):
        reports.append(export_adapter(weight, format, output_for(format, tmp_path / name), str(sd1.files.path)))
    assert reports[0]["sha256"] == reports[1]["sha256"]
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in "ab"]
    assert [digest(path) for path in files[0]] == [digest(path) for path in files[1]]


def test_unknown_formats_and_ranks_are_all_reported(lora: StoredAdapter, weight: StoredAdapter, tmp_path: Path) -> None:
    """The message says what is allowed."""
    with pytest.raises(SettingsError, match="allowed: diffusers, kohya, sparse, merged") as caught:
        export_adapter(lora, "gguf", tmp_path / "out", None, rank=4)
    assert len(caught.value.problems) == 2
    with pytest.raises(SettingsError, match="this export is exact"):
        export_adapter(lora, "diffusers", tmp_path / "out", None, rank=4)
    with pytest.raises(SettingsError, match="rank is 0"):
        export_adapter(weight, "diffusers", tmp_path / "out", None, rank=0)
    with pytest.raises(OutputError, match=r"must end in \.safetensors"):
        export_adapter(lora, "kohya", tmp_path / "out", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["channel", "weight"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_adapter_that_changes_nothing_is_refused(sd1: UNetDenoiser, tmp_path: Path, format: str, kind: Any) -> None:
    """Zeros would be exported without a word."""
    silent = Adapter.initialise(sd1, random_masks(sd1, kind), 4, 4.0, 0)
    save_adapter(tmp_path / "adapter", silent, "unet", manifest_for(sd1))
    with pytest.raises(AdapterError, match="changes no weight"):
        export_adapter(load_adapter(tmp_path / "adapter"), format, output_for(format, tmp_path), str(sd1.files.path))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_changed_since_it_was_read_is_not_exported(sd1: UNetDenoiser, tmp_path: Path) -> None:
    """The bytes handed on are checked once more."""
    _, stored = store(tmp_path / "adapter", sd1, "channel")
    (tmp_path / "adapter" / LORA).write_bytes(b"something else")
    with pytest.raises(AdapterError, match="changed or damaged"):
        export_adapter(stored, "diffusers", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
