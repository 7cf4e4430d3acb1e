"""Fixtures shared by all tests: small random models, built once a session."""

from __future__ import annotations

import os

# Before diffusers and transformers are imported: they read these at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from pathlib import Path

import pytest


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
