"""A real MLflow server and a real S3 API on this machine, for trying things out; both end with the block.

Nothing in them outlives it but MLflow's database and the logs, in the folder that is given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_START_SECONDS = 90


@contextlib.contextmanager
def s3_server(folder: Path, bucket: str, host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """An S3 API (moto, in memory) with one bucket; yields the environment that its clients need."""
    import boto3

    port = free_port()
    command = [sys.executable, "-P", "-m", "moto.server", "-H", host, "-p", str(port)]
    with process(command, folder / "s3.log", {}) as server:
        uri = f"http://{host}:{port}"
        wait_for(server, f"{uri}/moto-api/", folder / "s3.log")
        keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"}
        session = boto3.Session("local", "local", region_name="us-east-1")
        session.client("s3", endpoint_url=uri).create_bucket(Bucket=bucket)
        yield {**keys, "AWS_ENDPOINT_URL": uri}


@contextlib.contextmanager
def mlflow_server(
    folder: Path,
    database: str,
    artifacts: str,
    environment: dict[str, str] | None = None,
    options: Sequence[str] = (),
    host: str = "127.0.0.1",
) -> Iterator[str]:
    """An MLflow server that hands out the artifacts itself, so that its clients need no key to them; yields its URL."""
    port, log = free_port(), folder / "mlflow.log"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers",
               "1", "--backend-store-uri", database, "--artifacts-destination", artifacts, *options]  # fmt: skip
    # Jobs are MLflow's GenAI evaluations: 2 GB of processes that nothing here asks for.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **(environment or {})}
    with process(command, log, quiet, folder) as server:
        uri = f"http://{host}:{port}"
        wait_for(server, f"{uri}/health", log)
        yield uri


@contextlib.contextmanager
def process(
    command: Sequence[str],
    log: Path,
    environment: dict[str, str],
    folder: Path | None = None,
    stop: int = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, which is ended as a whole; it inherits no credentials."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env={**inherited, **environment}, start_new_session=True
        )
    with ended(server, stop):
        yield server


@contextlib.contextmanager
def ended(server: subprocess.Popen[bytes], stop: int = signal.SIGTERM) -> Iterator[None]:
    """Ends the process group of a process that was started as its leader."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, stop)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until ``url`` answers, if only by asking for credentials."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False

    wait_until(server, answers, log)


def wait_until(server: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    """Until a server is ready.

    Raises:
        RuntimeError: if it ends before, or takes too long, with the end of its log.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if ready():
            return
        time.sleep(0.2)
    raise RuntimeError(f"a server did not start:\n{log.read_text(errors='replace')[-2000:]}")
