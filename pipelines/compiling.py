"""How ``python -m pipelines.NAME`` compiles a pipeline to the YAML file beside its source, and to custom resources."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from pipelines.platform import PROFILES, Profile

NAMESPACE: Final = "spare"
_DIGITS: Final = 12


def compile_pipeline(made_for: Callable[[Profile], Any], source: Path, about: str) -> None:
    """Compile the pipeline that ``made_for`` makes for the profile of the command line.

    A PipelineVersion never changes once it is applied, so its name has the digest of what was compiled in it.
    """
    parser = argparse.ArgumentParser(description=about.partition("\n\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="gpu", help="what the tasks that run the model ask for")
    parser.add_argument("--output", type=Path, default=source.with_suffix(".yaml"))
    parser.add_argument("--resources", type=Path, help="file for the same as custom resources of KFP")
    given = parser.parse_args()
    pipeline = made_for(PROFILES[given.profile])
    compiler.Compiler().compile(pipeline, str(given.output))
    if not given.resources:
        return
    digest = hashlib.sha256(given.output.read_bytes()).hexdigest()
    options = KubernetesManifestOptions(
        pipeline_version_name=f"{pipeline.name}-{digest[:_DIGITS]}", namespace=NAMESPACE, include_pipeline_manifest=True
    )
    compiler.Compiler().compile(
        pipeline, str(given.resources), kubernetes_manifest_format=True, kubernetes_manifest_options=options
    )
