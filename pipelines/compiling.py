"""How ``python -m pipelines.NAME`` compiles a pipeline to the YAML file beside its source."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines.platform import PROFILES, Profile


def compile_pipeline(made_for: Callable[[Profile], Any], source: Path, about: str) -> None:
    """Compile the pipeline that ``made_for`` makes for the profile of the command line."""
    parser = argparse.ArgumentParser(description=about.partition("\n\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="gpu", help="what the tasks that run the model ask for")
    parser.add_argument("--output", type=Path, default=source.with_suffix(".yaml"))
    given = parser.parse_args()
    compiler.Compiler().compile(made_for(PROFILES[given.profile]), str(given.output))
