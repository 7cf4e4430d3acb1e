"""Models, pictures and settings may lie in S3: they are fetched once, as little of them as is needed, and checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.errors import InputError, ModelError, ObjectMissing, SettingsError
from spare_core.evaluation.gate import DEFAULT, POLICIES, Policy
from spare_core.evaluation.suite import load_suite
from spare_core.method.settings import EraseSettings
from spare_core.models.files import find_model
from spare_core.runs.erase import erase
from spare_core.store import open_store
from spare_core.store.fetching import local_path
from tests.support.faulty_proxy import FaultyProxy

SMALL = EraseSettings(
    failed_above=100.0, prior_texts=40, examples=4,
    retain_examples=8, heldout=4, example_steps=2, batch_size=2, steps=2, lr=1e-3,
    rank=2, bins=4, dtype="float32", device="cpu",
)  # fmt: skip


@pytest.fixture
def model(sd1_dir: Path, bucket: str, proxy: FaultyProxy) -> str:
    """The tiny model in S3, behind the proxy."""
    open_store(f"s3://{bucket}").upload(sd1_dir, "models/sd1")
    proxy.seen.clear()
    return f"s3://{bucket}/models/sd1"


def test_a_local_path_is_itself_and_a_collapsed_address_is_refused(tmp_path: Path) -> None:
    assert local_path(tmp_path / "none") == tmp_path / "none"
    assert local_path("none") == Path("none")
    with pytest.raises(InputError, match="write s3://bucket/prefix"):
        local_path(Path("s3://bucket/prefix"))


def test_a_model_in_s3_is_the_same_model(model: str, sd1_dir: Path, proxy: FaultyProxy) -> None:
    told: list[tuple[int, int]] = []
    files = find_model(model, lambda *progress: told.append(progress))
    assert files.source == model
    assert files.digest() == find_model(str(sd1_dir)).digest()
    assert told[-1][0] == told[-1][1] > 0
    proxy.seen.clear()
    assert find_model(model).path == files.path
    assert [method for method, _ in proxy.seen] == ["GET"]


def test_only_what_a_model_needs_is_fetched_and_never_a_pickle(
    model: str, bucket: str, s3: Any, proxy: FaultyProxy
) -> None:
    for name in ("sd1.ckpt", "unet/diffusion_pytorch_model.bin", "sd1.safetensors", "safety_checker/model.safetensors"):
        s3.put_object(Bucket=bucket, Key=f"models/sd1/{name}", Body=b"must not be read")
    fetched = find_model(model).path
    assert not [path for path in fetched.rglob("*") if path.is_file() and b"must not" in path.read_bytes()]
    assert proxy.count("GET", "ckpt|bin|checker") == 0


def test_what_is_no_model_in_s3_is_told_with_its_address(model: str, bucket: str, s3: Any) -> None:
    s3.delete_object(Bucket=bucket, Key="models/sd1/unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match=f"model '{model}': .*no safetensors"):
        find_model(model)
    with pytest.raises(ObjectMissing, match=f"nothing at {model}-none"):
        find_model(f"{model}-none")
    with pytest.raises(SettingsError, match="names no bucket"):
        find_model("s3://")


def test_erase_takes_model_and_images_from_s3(
    model: str, sd1_dir: Path, bucket: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 56), (200, 30, 30)).save(pictures / "one.png")
    open_store(f"s3://{bucket}").upload(pictures, "pictures")
    erasure = build_erasure(model, "Neon", "Photo", "style", ("Rust",), "{context} in {concept}", ("cat", "dog"))
    said: list[str] = []
    for name, base, images in (("here", str(sd1_dir), pictures), ("there", model, f"s3://{bucket}/pictures")):
        erase(base, Erasures(erasure), SMALL, tmp_path / name, images, lambda stage, done, total: said.append(stage))
    weights = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "here" / weights).read_bytes() == (tmp_path / "there" / weights).read_bytes()
    assert any(stage.startswith("fetch") for stage in said)
    manifest = (tmp_path / "there/spare.json").read_text(encoding="utf-8")
    assert model in manifest and str(tmp_path) not in manifest


def test_settings_policy_and_suite_come_from_s3_too(bucket: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(_made(tmp_path / "given/real/Photo/Cat") / "1.png")
    suite = {"extends": "canvas", "styles": ["Photo", "Rust"], "objects": ["Cat", "Dog"], "reference": "real"}
    policy = yaml.safe_load(POLICIES[DEFAULT].read_text()) | {"min_ua": 0.9}
    for name, values in (("settings", {"steps": 7}), ("policy", policy), ("suite", suite)):
        (tmp_path / "given" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    open_store(f"s3://{bucket}").upload(tmp_path / "given", "conf")
    place = f"s3://{bucket}/conf"
    assert EraseSettings.from_file(f"{place}/settings.yaml", rank=3) == EraseSettings(steps=7, rank=3)
    assert Policy.find(f"{place}/policy.yaml").min_ua == 0.9
    found = load_suite(f"{place}/suite.yaml")
    assert (found.name, found.styles) == ("suite", ("Photo", "Rust"))
    assert found.reference and (found.reference / "Photo/Cat/1.png").is_file()
    for call in (EraseSettings.from_file, Policy.find, load_suite):
        with pytest.raises(ObjectMissing, match=f"nothing at {place}/none.yaml"):
            call(f"{place}/none.yaml")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("images", "said"),
    [("s3://{bucket}/none", "there is nothing at s3://"), ("s3:/{bucket}/x", "write s3://bucket/prefix")],
)
def test_pictures_that_are_not_in_s3_are_told(
    sd1_dir: Path, bucket: str, tmp_path: Path, images: str, said: str
) -> None:
    command = ["erase", str(sd1_dir), "--erase", "Rust", "--surrogate", "Photo", "--kind", "style"]
    options = ["--images", images.format(bucket=bucket), "--output", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*command, *options])
    assert refused.exit_code == 2 and said in refused.stderr
    assert not (tmp_path / "out").exists()


def test_without_boto3_the_extra_to_install_is_named(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['boto3'] = sys.modules['botocore'] = None\n"
    code += "from spare_core.store import open_store\nfrom spare_core.store.fetching import local_path\n"
    code += "open_store(sys.argv[1]).check()\n"
    code += "for call in (open_store, local_path):\n    try:\n        call('s3://bucket/x')\n"
    code += "    except Exception as error:\n        print(type(error).__name__, error)\n"
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("StoreError s3://bucket/x needs boto3") == run.stdout.count("spare-unlearning[server]") == 2
