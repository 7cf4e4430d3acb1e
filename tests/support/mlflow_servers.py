"""Where a test's MLflow server is, and starting a PostgreSQL for one."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.services import free_port, process, wait_until

KEEPER = "keeper"
"""Name of the basic-auth server's administrator."""
PASSWORD = "a-planted-secret-7f3a"
"""Of the basic-auth server's administrator; must never be seen in a message."""
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


def basic_auth(folder: Path, password: str) -> dict[str, str]:
    """What a server with ``--app-name basic-auth`` needs, which lets only :data:`KEEPER` in."""
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\n"
        f"admin_username = {KEEPER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n"  # checking a password takes half a second by design
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only-for-tests",
    }


def postgres_programs() -> Path | None:
    """Where Debian's package ``postgresql`` has put them; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A database cluster of its own; PostgreSQL refuses to run as root, so then another user runs it."""
    programs = postgres_programs()
    assert programs
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
        with process(list(map(str, command)), folder / "log", {}, folder, signal.SIGINT) as server:
            ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
            wait_until(server, lambda: subprocess.run(ready, capture_output=True).returncode == 0, folder / "log")
            yield f"postgresql+psycopg2://spare@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
