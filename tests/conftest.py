"""Fixtures shared by all tests: small random models, built once a session."""

from __future__ import annotations

import contextlib
import os

# Before diffusers and transformers are imported: they read these at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from spare_core.canvas.judge import GridJudge
    from spare_core.models.unet import UNetDenoiser
    from tests.support.faulty_proxy import FaultyProxy


LONGEST = (
    "pipelines/test_local.py", "pipelines/test_services.py", "pipelines/test_takedown.py", "pipelines/test_bundle.py",
    "registry/test_concurrency.py", "canvas/test_compat.py", "runs/test_erase.py", "pipelines/test_warm.py",
    "test_wheel.py", "serving/test_server.py", "registry/test_models.py", "registry/test_promotions.py",
)  # fmt: skip
"""Modules of minutes, in the order in which they start: one that started last would run while other processes idle."""


def pytest_configure(config: pytest.Config) -> None:
    """Once a test run, for all its processes: what forks commands for them, and ends the servers that they share."""
    from tests.support.forking import forking_server

    if not hasattr(config, "workerinput"):
        started = contextlib.ExitStack()
        started.enter_context(forking_server())
        config.add_cleanup(started.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first; pytest-xdist hands modules out in this order (``--no-loadscope-reorder``)."""
    here = Path(__file__).parent
    order = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


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
    from tests.support.adapters import load_tiny

    return load_tiny(sd1_dir)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> GridJudge:
    """A judge of the small suite: random, but always the same."""
    from tests.support.grids import canvas_judge, small_suite

    return canvas_judge(tmp_path_factory.mktemp("judge"), small_suite())


@pytest.fixture(scope="session")
def s3_endpoint() -> str:
    """The URL of a real S3 server."""
    from tests.support.shared_servers import shared_server

    return shared_server("s3").uri


@pytest.fixture(scope="session")
def s3(s3_endpoint: str) -> Any:
    """A plain boto3 client of that server, for what others do there."""
    import boto3

    return boto3.session.Session("tests", "tests", region_name="us-east-1").client("s3", endpoint_url=s3_endpoint)


@pytest.fixture
def bucket(s3: Any, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket's name; clients of this process find it, and the cache is the test's own."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCESS_KEY_ID": "tests", "SECRET_ACCESS_KEY": "tests", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "cache"))
    name = f"test-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy between the clients of this process and the server of ``bucket``; without faults yet."""
    from tests.support.faulty_proxy import faulty_proxy

    with faulty_proxy(s3_endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.uri)
        yield running
