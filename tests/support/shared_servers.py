"""Servers that all processes of a test run share: the first that needs one starts it, and it ends with the run.

A server is held by a process of its own (``python -m tests.support.shared_servers KIND FOLDER``), since the process of
pytest that asked first may be done before the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from serving.services import mlflow_server, s3_server
from tests.support import forking
from tests.support.mlflow_servers import KEEPER, PASSWORD, Server, basic_auth, postgres


@contextlib.contextmanager
def _s3(folder: Path) -> Iterator[Server]:
    with s3_server(folder, "unused") as environment:
        yield Server(environment["AWS_ENDPOINT_URL"])


@contextlib.contextmanager
def _mlflow_on_s3(folder: Path) -> Iterator[Server]:
    with (
        s3_server(folder, "artifacts") as s3,
        mlflow_server(folder, "sqlite:///runs.db", "s3://artifacts/mlflow", s3) as uri,
    ):
        yield Server(uri)


@contextlib.contextmanager
def _mlflow_behind_auth(folder: Path) -> Iterator[Server]:
    environment = basic_auth(folder, PASSWORD)
    options = ["--app-name", "basic-auth"]
    with mlflow_server(folder, "sqlite:///runs.db", str(folder / "artifacts"), environment, options) as uri:
        yield Server(uri, {"MLFLOW_TRACKING_USERNAME": KEEPER, "MLFLOW_TRACKING_PASSWORD": PASSWORD})


@contextlib.contextmanager
def _mlflow_on_postgres(folder: Path) -> Iterator[Server]:
    with postgres() as database, mlflow_server(folder, database, str(folder / "artifacts")) as uri:
        yield Server(uri)


KINDS: Final[dict[str, Callable[[Path], AbstractContextManager[Server]]]] = {
    "s3": _s3,
    "mlflow-s3": _mlflow_on_s3,
    "mlflow-auth": _mlflow_behind_auth,
    "mlflow-postgres": _mlflow_on_postgres,
}


def shared_server(kind: str) -> Server:
    """The test run's server of this kind."""
    folder = Path(os.environ[forking.ADDRESS]).parent / kind
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = folder / "server.json"
        if not server.exists():
            holder = forking.popen([sys.executable, "-m", "tests.support.shared_servers", kind, str(folder)])
            said = holder.stdout.readline()
            assert said, holder.communicate()[1]
            server.write_text(said)
        return Server(**json.loads(server.read_text()))


def main(kind: str, folder: str) -> None:
    """Hold a server until the test run ends."""
    with forking.until_the_run_ends() as wait, KINDS[kind](Path(folder)) as server:
        print(json.dumps(asdict(server)), flush=True)
        wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
