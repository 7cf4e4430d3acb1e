"""Canvas's directory opens alike with the installed diffusers and transformers and with those of two years ago."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spare_core.canvas.protocol import CANVAS, prompt
from tests.support import forking

OLD = ("diffusers==0.30.3", "transformers==4.55.4", "huggingface_hub<1", "numpy<3")
SCRIPT = Path(__file__).parents[1] / "support" / "old_stack.py"
PROMPTS = [prompt("Cat", "Neon Lines"), prompt("Tower", "Rust"), "", "crème brûlée"]


def _load(python_path: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", "USE_TF": "0", "USE_FLAX": "0"}
    arguments = [str(CANVAS.pipeline), json.dumps(PROMPTS)]
    if python_path:
        command = [sys.executable, str(SCRIPT), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    else:  # what is installed has been imported already
        done = forking.run([sys.executable, "-m", "tests.support.old_stack", *arguments], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def old_stack(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the old releases, beside the installed torch."""
    folder = tmp_path_factory.mktemp("old-stack")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-compile", "--target", str(folder)]  # fmt: skip
    # peft of today does not import under the old transformers; diffusers takes an old one as none.
    needs = ["peft==0.13.2", "tokenizers<0.22", "requests", "filelock", "importlib_metadata", "zipp", "regex", "hf-xet",
             "fsspec", "urllib3", "idna", "certifi", "charset-normalizer"]  # fmt: skip
    subprocess.run([*pip, *OLD, *needs], check=True, timeout=600)
    return str(folder)


def test_old_and_new_releases_load_the_same_tensors_and_predict_the_same_noise(old_stack: str) -> None:
    """Text weights without their ``text_model.`` prefix would be random there, with only a warning."""
    old, new = _load(old_stack), _load("")
    assert old["versions"] == ["0.30.3", "4.55.4"]
    assert new["versions"] != old["versions"]
    assert old["digests"] == new["digests"]
    assert old["ids"] == new["ids"]
    torch.testing.assert_close(torch.tensor(old["noise_pred"]), torch.tensor(new["noise_pred"]), atol=1e-5, rtol=1e-4)
