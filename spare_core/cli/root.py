"""The ``spare`` command. Exit codes: 0 done, 2 bad input, 3 a gate refused, 130 stopped by Ctrl-C, 1 anything else."""

from __future__ import annotations

import atexit
import gc
import importlib.metadata
import os
from typing import Annotated

import typer

from spare_core.cli import pipeline
from spare_core.cli.attacking import attack
from spare_core.cli.erasing import compose, erase
from spare_core.cli.evaluating import evaluate
from spare_core.cli.registry import app as registry
from spare_core.cli.takedown import app as takedown
from spare_core.cli.using import export, generate, verify

app = typer.Typer(
    name="spare",
    help="Erase concepts from text-to-image diffusion models with small, reversible adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
GROUPS = {
    "On your model": (erase, evaluate, attack, generate, verify, export, compose),
    "As a pipeline": (pipeline.demo, pipeline.run, pipeline.submit),
}
for panel, commands in GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for group in (registry, takedown):
    app.add_typer(group, rich_help_panel="Records")


def run() -> None:
    """Run the command line."""
    # Imports make objects by the million, and all stay: Python's collector, looking through them again and again, takes
    # 0.4 s of a start and 0.9 s of an exit.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    # Read when the libraries are imported: their advice on optional packages is noise here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"spare {importlib.metadata.version('spare-unlearning')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass
