"""MLflow servers, one of each kind a session: sqlite with artifacts on S3, sqlite behind basic-auth, PostgreSQL.

A test module takes them with ``pytest_plugins = ("tests.support.mlflow_fixtures",)``; each is started when first asked
for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from serving.services import mlflow_server, s3_server
from spare_core.registry.client import connect
from tests.support.mlflow_servers import KEEPER, PASSWORD, Server, basic_auth, postgres


@pytest.fixture(scope="session")
def mlflow_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """sqlite, artifacts on S3 (moto, over HTTP), no authentication."""
    folder = tmp_path_factory.mktemp("mlflow-s3")
    with (
        s3_server(folder, "artifacts") as s3,
        mlflow_server(folder, "sqlite:///runs.db", "s3://artifacts/mlflow", s3) as uri,
    ):
        yield Server(uri)


@pytest.fixture(scope="session")
def mlflow_auth_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """sqlite behind basic-auth, artifacts in a folder."""
    folder = tmp_path_factory.mktemp("mlflow-auth")
    environment = basic_auth(folder, PASSWORD)
    options = ["--app-name", "basic-auth"]
    with mlflow_server(folder, "sqlite:///runs.db", str(folder / "artifacts"), environment, options) as uri:
        yield Server(uri, {"MLFLOW_TRACKING_USERNAME": KEEPER, "MLFLOW_TRACKING_PASSWORD": PASSWORD})


@pytest.fixture(scope="session")
def mlflow_postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """PostgreSQL, artifacts in a folder; skipped where Debian's package ``postgresql`` is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    folder = tmp_path_factory.mktemp("mlflow-postgres")
    with postgres(programs[-1].parent) as database, mlflow_server(folder, database, str(folder / "artifacts")) as uri:
        yield Server(uri)


@pytest.fixture
def server(mlflow_s3_server: Server) -> Iterator[Server]:
    """MLflow clients of this process talk to the server with artifacts on S3."""
    with mlflow_s3_server.used() as used:
        yield used


@pytest.fixture
def client() -> MlflowClient:
    """A client of the server in use."""
    return connect()
