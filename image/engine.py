"""A Docker engine to build and try the image with: the one that the environment names, or one of our own.

Where none answers, root on Debian can have one that lives as long as it is needed: ``dockerd`` from ``docker.io``, with
all its state in one folder. It needs no registry either: Debian 12 as ``debian:bookworm-slim`` then comes from
``mmdebstrap``, from the very packages that the official image is made of.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from serving.services import process, wait_until

BASE: Final = "debian:bookworm-slim"
_DEBIANS: Final = "/usr/bin/docker"
_BUILDKIT: Final = {"DOCKER_BUILDKIT": "1"}
_NEEDED: Final = {"dockerd": "docker.io", "iptables": "iptables"}
_SLIM: Final = ("doc", "man", "locale", "info", "lintian")
"""Below /usr/share: what the official image leaves out, too."""


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[dict[str, str]]:
    """An engine, with its state in ``folder`` if it is ours; yields the environment that clients need.

    Raises:
        RuntimeError: if none answers and none can be started.
    """
    if _answers(os.environ):
        yield {}
        return
    _install(_NEEDED)
    folder.mkdir(parents=True, exist_ok=True)
    # A socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="spare-docker") as run:
        environment = {"DOCKER_HOST": f"unix://{run}/docker.sock"}
        log = folder / "dockerd.log"
        state = folder.absolute() / "state"
        command = ["dockerd", "--data-root", str(state), "--exec-root", f"{run}/exec", "--pidfile", f"{run}/pid",
                   "--host", environment["DOCKER_HOST"]]  # fmt: skip
        with process(command, log, {}) as server:
            wait_until(server, lambda: _answers({**os.environ, **environment}), log)
            yield environment


def base_image(environment: dict[str, str]) -> str:
    """The name of the base image, which is there, or pulled, or made of Debian's packages.

    Raises:
        RuntimeError: if it is not there, no registry can be reached, and mmdebstrap is not to be had.
    """
    if docker(environment, "image", "inspect", BASE, check=False).returncode == 0:
        return BASE
    if docker(environment, "pull", "--quiet", BASE, check=False).returncode == 0:
        return BASE
    _install({"mmdebstrap": "mmdebstrap"})
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "base.tar"
        leave_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _SLIM]
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", *leave_out, "bookworm", archive], check=True)
        docker(environment, "import", str(archive), BASE)
    return BASE


def docker(environment: dict[str, str], *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the ``docker`` command.

    Raises:
        RuntimeError: with its own words, if it fails and that is not to be looked at.
    """
    done = subprocess.run(
        [_client(), *arguments], env={**os.environ, **_BUILDKIT, **environment}, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    if check and done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@functools.cache
def _client() -> str:
    """A ``docker`` command that can build with BuildKit, which newer ones need a plugin for: Debian's own can.

    Raises:
        RuntimeError: if there is none.
    """
    for client in (shutil.which("docker"), _DEBIANS):
        if client and Path(client).exists():
            asked = [client, "build", "--help"]
            told = subprocess.run(asked, env={**os.environ, **_BUILDKIT}, text=True, capture_output=True, check=False)
            if "--secret" in told.stdout:
                return client
    raise RuntimeError("no docker command here builds with BuildKit; install docker-buildx, or Debian's docker.io")


def _answers(environment: Mapping[str, str]) -> bool:
    if not shutil.which("docker"):
        return False
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(asked, env=environment, capture_output=True, check=False, timeout=30).returncode == 0


def _install(needed: dict[str, str]) -> None:
    """Install the Debian packages of the programs that are not there."""
    missing = [package for program, package in needed.items() if not shutil.which(program)]
    if not missing:
        return
    how = f"install {' and '.join(missing)}, or set DOCKER_HOST to an engine that runs"
    if os.geteuid() or not shutil.which("apt-get"):
        raise RuntimeError(f"no Docker engine answers, and without root and apt-get none can be started here; {how}")
    print(f"installing {' '.join(missing)} with apt-get", file=sys.stderr)
    subprocess.run(["apt-get", "update", "--quiet=2"], check=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "install", "--quiet=2", "--no-install-recommends", *missing], check=True, env=quiet)
