"""A single-file model from erasing to what MLflow serves, by the commands: what comes out needs the file no more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from diffusers import DiffusionPipeline
from mlflow.models import Model
from typer.testing import CliRunner

from spare_core.adapters.directory import load_adapter
from spare_core.cli.root import app
from spare_core.registry.packaging import package
from tests.support.checkpoints import save_both

SMALL = {
    "steps": 1, "examples": 2, "retain_examples": 4, "heldout": 2, "example_steps": 2, "prior_texts": 40,
    "failed_above": 100, "dtype": "float32", "seed": 3,
}  # fmt: skip


def spare(*arguments: object) -> None:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_single_file_goes_all_the_way(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "cache"))
    folder, file = save_both(kind, tmp_path)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    spare("erase", file, "--erase", "a cat", "--surrogate", "a dog", "--kind", "object", *settings, "--output", adapter)
    for base in (file, folder):  # the same weights, so the same model
        spare("verify", adapter, "--model", base)
    spare("export", adapter, "--format", "merged", "--model", file, "--output", merged)
    assert json.loads((adapter / "spare.json").read_text())["base"]["source"] == str(file)
    package(tmp_path / "packaged", load_adapter(adapter), Model())
    shutil.copytree(tmp_path / "packaged", tmp_path / "elsewhere")
    file.unlink()
    shutil.rmtree(tmp_path / "cache")
    assert DiffusionPipeline.from_pretrained(merged).unet is not None
    served = mlflow.pyfunc.load_model(str(tmp_path / "elsewhere"))
    sizes = {"num_inference_steps": 1, "height": 16, "width": 16}
    assert served.predict(["a cat"], params=sizes)[0].startswith(b"\x89PNG")
