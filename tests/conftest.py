"""Fixtures shared by all tests: small random models, built once a session."""

from __future__ import annotations

import os

# Before diffusers and transformers are imported: they read these at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from spare_core.denoiser import UNetDenoiser
    from spare_core.evaluation.judges import CanvasJudge


@pytest.fixture(scope="session")
def sd1_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.x pipeline directory; read-only."""
    from tests.tiny import build_sd1

    return build_sd1(tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture(scope="session")
def sd2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 2.x pipeline directory with v-prediction; read-only."""
    from tests.tiny import build_sd2_v

    return build_sd2_v(tmp_path_factory.mktemp("models") / "sd2")


@pytest.fixture(scope="session")
def sdxl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL pipeline directory; read-only."""
    from tests.tiny import build_sdxl

    return build_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def denoiser(sd1_dir: Path) -> UNetDenoiser:
    """The tiny SD 1.x model, loaded; for tests that leave it as it was."""
    from tests.adapters import load_tiny

    return load_tiny(sd1_dir)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> CanvasJudge:
    """A judge of the small suite: random, but always the same."""
    from tests.grids import canvas_judge, small_suite

    return canvas_judge(tmp_path_factory.mktemp("judge"), small_suite())
