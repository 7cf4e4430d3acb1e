"""What goes out says what it is: a header that tools show, a preview, a card; and it loads as users load it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from typer.testing import CliRunner

from spare_core.adapters.card import CARD, model_card, plain
from spare_core.adapters.directory import StoredAdapter
from spare_core.adapters.export import export_adapter
from spare_core.adapters.modelspec import split, with_metadata
from spare_core.cli.root import app
from spare_core.errors import ModelError, OutputError
from spare_core.runs.preview import Preview
from tests.support.adapters import load_tiny, store
from tests.tiny import PIXELS


@pytest.fixture(scope="module")
def lora(sd1_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    return store(tmp_path_factory.mktemp("lora") / "adapter", load_tiny(sd1_dir), "channel")[1]


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


# kohya's header


@pytest.mark.parametrize(("model", "architecture", "version", "prediction"), [
    ("sd1_dir", "stable-diffusion-v1/lora", "sd_v1", "epsilon"),
    ("sd2_dir", "stable-diffusion-v2-768-v/lora", "sd_v2_v", "v"),
    ("sdxl_dir", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "epsilon"),
])  # fmt: skip
def test_a_kohya_file_says_what_it_is(
    model: str, architecture: str, version: str, prediction: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    stored = store(tmp_path / "adapter", load_tiny(request.getfixturevalue(model)), "none")[1]
    file = tmp_path / "out.safetensors"
    report = export_adapter(stored, "kohya", file)
    said = metadata(file)
    assert said["modelspec.architecture"] == architecture
    assert (said["ss_base_model_version"], said["modelspec.prediction_type"]) == (version, prediction)
    assert said["modelspec.title"] == "Neon Lines suppressed, drawn as Photo (SPARE)"
    assert "residual 0.125, mean drift 0.0625" in said["modelspec.description"]
    assert said["modelspec.resolution"] == f"{PIXELS}x{PIXELS}"
    ranks = {len(tensor) for name, tensor in load_file(file).items() if name.endswith("lora_down.weight")}
    assert ranks == {int(said["ss_network_dim"])} == {int(float(said["ss_network_alpha"]))}
    length = int.from_bytes(file.read_bytes()[:8], "little")
    assert (8 + length) % 8 == 0
    assert said["modelspec.hash_sha256"] == "0x" + hashlib.sha256(file.read_bytes()[8 + length :]).hexdigest()
    assert said["spare.adapter_sha256"] == stored.sha256 == report["adapter_sha256"]


def test_other_metadata_leaves_the_tensors_as_they_are(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(7), "ü": torch.zeros(0)}
    written = with_metadata(save(tensors, {"format": "pt"}), {"format": "pt", "title": 'é "quoted"\n', "a": ""})
    (tmp_path / "file.safetensors").write_bytes(written)
    assert metadata(tmp_path / "file.safetensors") == {"format": "pt", "title": 'é "quoted"\n', "a": ""}
    found = load_file(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert split(written)[1] == split(save(tensors))[1]


# The preview


def test_a_preview_shows_the_base_and_what_the_file_makes_of_it(
    lora: StoredAdapter, sd1_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.safetensors"
    done = CliRunner().invoke(
        app, ["export", str(lora.folder), "--format", "kohya", "--model", str(sd1_dir), "--output", str(file), "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["diffusers_difference"] <= 1e-5
    picture = np.asarray(Image.open(tmp_path / "out.preview.png"))
    assert picture.shape == (PIXELS, 2 * PIXELS, 3)
    left, right = picture[:, :PIXELS], picture[:, PIXELS:]
    assert (left != right).any()
    assert report["preview_prompt"] == "Neon Lines"


def test_a_preview_is_refused_before_anything_is_written(
    lora: StoredAdapter, sd1_dir: Path, sd2_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match="was trained for the base model"):
        Preview(lora, file, str(sd2_dir))
    file.with_suffix(".preview.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"out\.preview\.png exists"):
        Preview(lora, file, str(sd1_dir))
    assert [one.name for one in tmp_path.iterdir()] == ["out.preview.png"]


# The card


@pytest.mark.parametrize("format", ["diffusers", "sparse", "merged"])
def test_a_folder_has_a_card(lora: StoredAdapter, sd1_dir: Path, tmp_path: Path, format: str) -> None:
    export_adapter(lora, format, tmp_path / "out", str(sd1_dir))
    text = (tmp_path / "out" / CARD).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "diffusers"
    assert "| Neon Lines | Photo | 0.125 |" in body
    assert lora.sha256 in body and lora.base_digest in body
    assert str(sd1_dir) not in text, "a path of this machine"


HOSTILE = [
    "a | b", "<img src=x onerror=alert(1)>", "[click](javascript:alert(1))", "`code`", "$(ENV)",
    "# title", "---", "*bold* _it_", "![x](http://x/y.png)", "~~gone~~", "{{ x }}",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_as_they_are(lora: StoredAdapter, name: str) -> None:
    manifest = {**lora.manifest, "concept": name, "residuals": {name: 0.5}}
    text = model_card(manifest, "diffusers", None)
    assert f"| {plain(name)} | Photo | 0.500 |" in text
    assert "\n" not in plain(name) and "<" not in plain(name)
    assert all(mark not in plain(name).replace(f"\\{mark}", "") for mark in "|`[]*")
    assert yaml.safe_load(text.split("---\n", 2)[1])["library_name"] == "diffusers"


def test_a_card_of_a_long_list_has_the_worst(lora: StoredAdapter) -> None:
    rows = [{**lora.manifest, "concept": f"Name {i}", "surrogate": "Photo"} for i in range(60)]
    keys = ("concept", "surrogate", "kind", "kept", "template", "contexts", "aliases")
    manifest = {
        **{name: value for name, value in lora.manifest.items() if name not in keys},
        "requests": [{name: row[name] for name in keys if name in row} for row in rows],
        "residuals": {f"Name {i}": i / 100 for i in range(60)},
    }
    text = model_card(manifest, "merged", {"overall": 1e-8, "worst": 1e-7})
    assert "# 60 concepts suppressed" in text
    assert text.count("| Photo |") == 20 and "| Name 59 |" in text and "| Name 39 |" not in text


# The consumer's own call


def test_what_diffusers_would_load_otherwise_is_not_delivered(
    lora: StoredAdapter, sd1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if something in the folder came before the file that was merged into."""
    from spare_core.adapters import merge

    copy = merge._copy

    def and_shards(files: object, folder: Path) -> list[str]:
        left_out = copy(files, folder)  # type: ignore[arg-type]
        tensors = load_file(folder / "text_encoder" / "model.safetensors")
        name = sorted(tensors)[0]
        save_file({**tensors, name: tensors[name] + 1}, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
        return left_out

    monkeypatch.setattr(merge, "_copy", and_shards)
    with pytest.raises(ModelError, match="diffusers loads another text_encoder from what was written"):
        export_adapter(lora, "merged", tmp_path / "out", str(sd1_dir))
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_needs_arguments_is_told(lora: StoredAdapter, sd1_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(sd1_dir, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (base / "model_index.json").write_text(json.dumps(index))
    for model, said in ((sd1_dir, "loads by its path alone"), (base, "give safety_checker=None to from_pretrained")):
        done = CliRunner().invoke(app, ["verify", str(lora.folder), "--model", str(model), "--json"])
        assert done.exit_code == 0, done.output
        assert said in json.loads(done.stdout)["in_stock_diffusers"]
