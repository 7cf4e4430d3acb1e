"""How tests call ``spare submit``, and the ``kfp`` command beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer
from click.testing import Result
from typer.testing import CliRunner

from spare_core.cli.pipeline import submit as command
from tests.support.run_service import RunService

TOKEN = "a-planted-token-9c1e"
APP = typer.Typer()
APP.command()(command)


def spare(service: RunService, *arguments: object) -> Result:
    return CliRunner().invoke(APP, ["--endpoint", service.url, *map(str, arguments)])


def kfp_create(service: RunService, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command of the README."""
    program = str(Path(sys.executable).with_name("kfp"))
    create = ["run", "create", "-e", "spare", "-r", "NAME", "-f", str(file), *arguments]
    return subprocess.run([program, "--endpoint", service.url, *create], capture_output=True, text=True, timeout=60)
