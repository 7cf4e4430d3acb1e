"""A KFP API server and a pipeline for it; taken with ``pytest_plugins = ("tests.support.cluster_fixtures",)``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import kfp
import pytest

from tests.support.pipelines_stand_in import compile_stand_in
from tests.support.run_service import RunService, run_service


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled pipeline that takes parameters of every type."""
    return compile_stand_in(tmp_path_factory.mktemp("compiled") / "stand_in.yaml")


@pytest.fixture
def no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kfp's client finds none of those that a user of this machine may have."""
    for name in os.environ:
        if name.startswith(("KFP_", "KF_PIPELINES_")) or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))


@pytest.fixture
def service() -> Iterator[RunService]:
    """A server that lets everybody in."""
    with run_service() as running:
        yield running
