"""A task waits for MLflow and S3 that are away for a moment, for as long as it is told, and for nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import boto3
import pytest

from spare_core.errors import InputError, ObjectMissing, RegistryUnavailable, StoreUnavailable
from spare_core.registry.client import embedded_uri
from spare_core.workflow.services import await_services, task_of
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.mlflow_servers import Server
from tests.support.shared_servers import shared_server

pytest_plugins = ("tests.support.mlflow_fixtures",)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """S3 behind a proxy as the store, MLflow in a folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", embedded_uri(tmp_path))
    with closing(FaultyProxy(shared_server("s3").uri)) as proxy:
        for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_ENDPOINT_URL", proxy.uri),
                            ("AWS_DEFAULT_REGION", "us-east-1"), ("SPARE_STORE", "s3://awaited/x")):  # fmt: skip
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="awaited")
        yield proxy


def test_a_store_that_is_away_for_a_moment_is_waited_for(
    s3: FaultyProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARE_WAIT_SECONDS", "30")
    s3.faults.append(Fault(path="awaited", times=4, status=503, code="SlowDown"))
    await_services()
    told = capsys.readouterr().out
    assert told.startswith("waiting for up to 30 s: ")
    assert told.count("waiting") == 1
    assert sum("awaited" in target for method, target in s3.seen if method == "GET") == 5


def test_one_that_stays_away_is_waited_for_no_longer_than_was_said(
    s3: FaultyProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.faults.append(Fault(path="awaited", times=10**6, status=503, code="SlowDown"))
    with pytest.raises(StoreUnavailable):
        await_services()
    assert "waiting" not in capsys.readouterr().out, "nobody said how long"
    monkeypatch.setenv("SPARE_WAIT_SECONDS", "3")
    begun = time.monotonic()
    with pytest.raises(SystemExit), task_of("gate"):
        pytest.fail("its services are not there")
    assert 3 <= time.monotonic() - begun < 20
    assert '"event": "error"' in capsys.readouterr().out


def test_what_waiting_does_not_mend_is_said_at_once(s3: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARE_WAIT_SECONDS", "600")
    monkeypatch.setenv("SPARE_STORE", "s3://no-such-bucket-here/x")
    begun = time.monotonic()
    with pytest.raises(ObjectMissing):
        await_services()
    for given in ("soon", "-1", "1.5", "100000"):
        monkeypatch.setenv("SPARE_WAIT_SECONDS", given)
        with pytest.raises(InputError, match="a whole number of seconds, at most a day"):
            await_services()
    assert time.monotonic() - begun < 10


def test_mlflow_is_waited_for_too(mlflow_s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARE_STORE", raising=False)
    with closing(FaultyProxy(mlflow_s3_server.uri)) as proxy, Server(proxy.uri).used():
        proxy.faults.append(Fault("POST", "experiments/search", times=2, status=503))
        with pytest.raises(RegistryUnavailable):
            await_services()
        monkeypatch.setenv("SPARE_WAIT_SECONDS", "30")
        await_services()
