"""Starting and ending real servers: MLflow, an S3 for its artifacts, a PostgreSQL for its runs."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PASSWORD = "a-planted-secret-7f3a"
"""Of the basic-auth server's administrator; must never be seen in a message."""
_START_SECONDS = 90
_CLIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


@dataclass(frozen=True)
class Server:
    """Where a server is, and the environment that a client of it needs."""

    uri: str
    credentials: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a client reads."""
        return {**_CLIENT, **self.credentials, "MLFLOW_TRACKING_URI": self.uri}

    @contextlib.contextmanager
    def used(self) -> Iterator[Server]:
        """MLflow clients of this process talk to this server."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
                patch.delenv(name, raising=False)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield self


@contextlib.contextmanager
def moto_server(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server with the bucket ``artifacts``; yields the environment its clients need."""
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _process(command, folder / "moto.log", {}) as process:
        uri = f"http://127.0.0.1:{port}"
        _wait_for(process, f"{uri}/moto-api/", folder / "moto.log")
        keys = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}
        session = boto3.Session("tests", "tests", region_name="us-east-1")
        session.client("s3", endpoint_url=uri).create_bucket(Bucket="artifacts")
        yield {**keys, "MLFLOW_S3_ENDPOINT_URL": uri}


@contextlib.contextmanager
def serving(
    folder: Path, database: str, artifacts: str, environment: dict[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[Server]:
    port, log = free_port(), folder / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", database, "--artifacts-destination", artifacts, *options]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **(environment or {})}
    with _process(command, log, quiet, folder) as process:
        uri = f"http://127.0.0.1:{port}"
        _wait_for(process, f"{uri}/health", log)
        yield Server(uri)


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """A database cluster of its own; PostgreSQL refuses to run as root, so then another user runs it."""
    folder, port, become = Path(tempfile.mkdtemp(prefix="spare-postgres-")), free_port(), []
    if os.geteuid() == 0:
        user = next(user for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
        os.chown(folder, user.pw_uid, user.pw_gid)
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = folder / "data"
    setup = [*become, programs / "initdb", "-D", data, "-U", "spare", "--auth=trust", "--no-sync", "-E", "UTF8"]
    command = [*become, programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
    try:
        subprocess.run(list(map(str, setup)), check=True, capture_output=True, cwd=folder, timeout=60)
        with _process(list(map(str, command)), folder / "log", {}, folder, signal.SIGINT) as process:
            ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
            _wait_until(process, lambda: subprocess.run(ready, capture_output=True).returncode == 0, folder / "log")
            yield f"postgresql+psycopg2://spare@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    log: Path,
    environment: dict[str, str],
    folder: Path | None = None,
    stop: int = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, which is ended as a whole."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env={**inherited, **environment}, start_new_session=True
        )
    with ended(process, stop):
        yield process


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes], stop: int = signal.SIGTERM) -> Iterator[None]:
    """Ends the process group of a process that was started as its leader."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stop)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401  # it is there, and wants credentials
        except OSError:
            return False

    _wait_until(process, answers, log)


def _wait_until(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return
        time.sleep(0.2)
    raise AssertionError(f"a server did not start:\n{log.read_text(errors='replace')[-2000:]}")
