"""What is installed is enough: commands and compiled pipelines work from a wheel, in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds; its dependencies are those of the tests.

    Built from a copy: setuptools puts into a wheel what an earlier build left in the source folder.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("spare_core", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("spare_unlearning-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def spare(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a folder of its own; nothing of the checkout is imported."""
    unset = ("MLFLOW_TRACKING_URI", "SPARE_STORE", "SPARE_CHECKPOINTS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["PYTHONPATH"] = str(installed)
    command = [sys.executable, "-c", "from spare_core.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_wheel_carries_the_compiled_pipeline_and_not_its_source_components(installed: Path) -> None:
    assert (installed / "pipelines" / "spare.yaml").read_bytes() == (ROOT / "pipelines" / "spare.yaml").read_bytes()
    assert (installed / "spare_core" / "evaluation" / "policies" / "default.yaml").is_file()
    assert (installed / "spare_core" / "method" / "presets" / "paper.yaml").is_file()
    assert not (installed / "tests").exists()


def test_an_installed_pipeline_runs_its_tasks_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """As far as the first task, which names what is wrong: its process imports the wheel, too."""
    where = [sys.executable, "-c", "import pipelines, spare_core; print(pipelines.__file__, spare_core.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    paths = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert paths.count(str(installed)) == 2
    done = spare(installed, tmp_path, "run", "model=canvas", "erase=Cat", "surrogate=cat")
    assert done.returncode == 2
    assert "error: validate: the surrogate 'cat' is the concept itself" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["spare-run"]


def test_an_installed_command_has_its_data(installed: Path, tmp_path: Path) -> None:
    done = spare(installed, tmp_path, "generate", "canvas", "--prompt", "A Cat image in Photo style.", "--steps", "2",
                 "--output", "out", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / json.loads(done.stdout)["pictures"][0]["file"]).exists()
