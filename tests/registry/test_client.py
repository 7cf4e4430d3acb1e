"""The way to the server: asked before work starts, answered in time, and silent about credentials."""

from __future__ import annotations

import socket
import time

import pytest

from serving.services import free_port
from spare_core.errors import RegistryError, RegistryInputError, RegistryUnavailable
from spare_core.registry.client import check_server, connect, scrubbed
from spare_core.registry.tracking import stage_run
from spare_core.registry.views import list_models
from tests.support.mlflow_servers import PASSWORD, Server

pytest_plugins = ("tests.support.mlflow_fixtures",)


@pytest.mark.parametrize("uri", ["", "  ", "mlruns", "file:///tmp/mlruns", "sqlite:///runs.db", "databricks"])
def test_without_a_server_nothing_is_written_anywhere(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for call in (check_server, connect, list_models):
        with pytest.raises(RegistryInputError, match="MLFLOW_TRACKING_URI"):
            call()


def test_a_server_that_is_down_is_said_at_once_and_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://keeper:{PASSWORD}@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(RegistryUnavailable, match=r"MLflow at http://127.0.0.1:\d+ cannot be reached") as caught:
        check_server()
    assert time.monotonic() - started < 10
    assert PASSWORD not in str(caught.value)
    assert "keeper" not in str(caught.value)


def test_a_server_that_takes_the_call_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            check_server()
        assert time.monotonic() - started < 10


def test_right_credentials_are_let_in(mlflow_auth_server: Server) -> None:
    with mlflow_auth_server.used():
        check_server()
        with stage_run("r-auth", "prepare", "kfp-1") as run:
            run.params({"rank": 8})
        assert isinstance(list_models(), list)


@pytest.mark.parametrize("credentials", [
    {"MLFLOW_TRACKING_USERNAME": "keeper", "MLFLOW_TRACKING_PASSWORD": "wrong-7f3a"}, {},
])  # fmt: skip
def test_wrong_credentials_are_named_but_not_told(mlflow_auth_server: Server, credentials: dict[str, str]) -> None:
    with Server(mlflow_auth_server.uri, credentials).used():
        for call in (check_server, list_models, lambda: stage_run("r", "prepare", "k").__enter__()):
            with pytest.raises(RegistryError, match=r"refuses these credentials.*MLFLOW_TRACKING_USERNAME") as caught:
                call()
            assert "7f3a" not in str(caught.value)
            assert not isinstance(caught.value, RegistryUnavailable)


def test_wrong_credentials_within_the_address_are_not_told(
    mlflow_auth_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = mlflow_auth_server.uri.replace("http://", "http://keeper:wrong-7f3a@")
    with Server(address).used(), pytest.raises(RegistryError) as caught:
        check_server()
    assert "7f3a" not in str(caught.value)


def test_a_server_that_is_no_mlflow_is_said_to_be_none(mlflow_s3_server: Server) -> None:
    with Server(f"{mlflow_s3_server.uri}/nowhere").used(), pytest.raises(RegistryError):
        check_server()


def test_messages_lose_credentials_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    text = "GET https://me:pw@host/x?token=hf_planted failed; s3://bucket/a@b is fine, mail me@host too"
    assert scrubbed(text) == "GET https://host/x?token=… failed; s3://bucket/a@b is fine, mail me@host too"
