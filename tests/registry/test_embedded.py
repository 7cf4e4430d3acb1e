"""MLflow without a server: sqlite and a folder, for what runs on one machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spare_core.errors import RegistryInputError
from spare_core.evaluation.gate import Policy
from spare_core.models.unet import UNetDenoiser
from spare_core.registry import promotions
from spare_core.registry.client import check_server, connect, embedded_uri, tracking_uri
from spare_core.store import open_store
from tests.support.registrations import register_one


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an MLflow, whose tables are made once."""
    return tmp_path_factory.mktemp("embedded registry")


@pytest.fixture(autouse=True)
def used(embedded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", embedded_uri(embedded))
    monkeypatch.chdir(tmp_path)
    check_server()


def test_an_adapter_is_registered_promoted_and_found_in_the_folder(
    embedded: Path, denoiser: UNetDenoiser, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    version = register_one(tmp_path / "one", denoiser, "Embedded", store=store)
    moved = promotions.promote(version.name, version.version, store, "tests", Policy.from_file())
    assert moved.aliases.champion == version.version
    assert connect().get_model_version_by_alias(version.name, "champion").version in (version.version, "1")
    assert list((embedded / "artifacts").rglob("pytorch_lora_weights.safetensors"))
    assert not (tmp_path / "mlruns").exists(), "nothing beside what was asked for"


CHILD = """
import os, signal, sys
from spare_core.registry.client import connect
import mlflow.store.db.utils as database
if sys.argv[1] == "killed":
    database._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
connect().create_experiment(sys.argv[1])
"""


def test_killed_while_its_tables_are_made_or_made_by_two_at_once_it_can_still_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "young"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", embedded_uri(folder))
    killed = subprocess.run([sys.executable, "-c", CHILD, "killed"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in folder.iterdir()] == [".partial"], "the tables were being made"
    both = [subprocess.Popen([sys.executable, "-c", CHILD, name]) for name in ("one", "two")]
    assert [process.wait(120) for process in both] == [0, 0]
    assert {experiment.name for experiment in connect().search_experiments()} == {"Default", "one", "two"}


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b"])
def test_a_folder_that_cannot_be_an_address_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryInputError, match="mean something else in a URI"):
        embedded_uri(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("uri", ["sqlite:///relative.db", "sqlite://", "file:///tmp/x", "./mlruns", "databricks"])
def test_an_address_that_would_silently_be_a_local_folder_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryInputError, match=r"it must be the http:// or https:// address .* or sqlite:////"):
        tracking_uri()
