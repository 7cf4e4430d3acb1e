"""MLflow servers, one of each kind a test run: sqlite with artifacts on S3, sqlite behind basic-auth, PostgreSQL.

A test module takes them with ``pytest_plugins = ("tests.support.mlflow_fixtures",)``; each is started when first asked
for. Tests of other processes use them at the same time: a test's registered models bear its own name.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from spare_core.registry.client import connect
from tests.support.mlflow_servers import Server, postgres_programs
from tests.support.shared_servers import shared_server


@pytest.fixture(scope="session")
def mlflow_s3_server() -> Server:
    """sqlite, artifacts on S3 (moto, over HTTP), no authentication."""
    return shared_server("mlflow-s3")


@pytest.fixture(scope="session")
def mlflow_auth_server() -> Server:
    """sqlite behind basic-auth, artifacts in a folder."""
    return shared_server("mlflow-auth")


@pytest.fixture(scope="session")
def mlflow_postgres_server() -> Server:
    """PostgreSQL, artifacts in a folder; skipped where Debian's package ``postgresql`` is not installed."""
    if postgres_programs() is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    return shared_server("mlflow-postgres")


@pytest.fixture
def server(mlflow_s3_server: Server) -> Iterator[Server]:
    """MLflow clients of this process talk to the server with artifacts on S3."""
    with mlflow_s3_server.used() as used:
        yield used


@pytest.fixture
def client() -> MlflowClient:
    """A client of the server in use."""
    return connect()
