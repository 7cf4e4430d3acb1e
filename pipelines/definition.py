"""Compiled pipelines: the YAML files that KFP's compiler writes and its API server takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from spare_core.errors import SettingsError

SPARE = Path(__file__).with_name("spare.yaml")
"""The pipeline that erases one concept and promotes the adapter."""
BUNDLE = Path(__file__).with_name("bundle.yaml")
"""The one that makes one adapter of many requests."""
TAKEDOWN = Path(__file__).with_name("takedown.yaml")
"""The one that works through takedown lists."""
OWN = (SPARE, BUNDLE, TAKEDOWN)


@dataclass(frozen=True)
class Definition:
    """A compiled pipeline: its specification, and what it asks of the platform (empty where it asks nothing)."""

    pipeline: pipeline_spec_pb2.PipelineSpec
    platform: pipeline_spec_pb2.PlatformSpec

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.pipeline.pipeline_info.name)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the pipeline takes: the ParameterSpec of each parameter."""
        return dict(self.pipeline.root.input_definitions.parameters)

    def as_dict(self) -> dict[str, Any]:
        """The ``pipeline_spec`` of a run, as KFP's own client sends it."""
        pipeline = json_format.MessageToDict(self.pipeline)
        if not self.platform.platforms:
            return pipeline
        return {"pipeline_spec": pipeline, "platform_spec": json_format.MessageToDict(self.platform)}


def read_definition(path: Path) -> Definition:
    """Read a compiled pipeline.

    Raises:
        SettingsError: if the file cannot be read, or holds something else.
    """
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]
    except OSError as error:
        raise _no_pipeline(path, error.strerror or str(error)) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise _no_pipeline(path, str(error)) from None
    if len(documents) not in (1, 2) or not all(isinstance(document, dict) for document in documents):
        raise _no_pipeline(path, "it must hold a pipeline, and perhaps what it asks of the platform")
    try:
        pipeline = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        platform = json_format.ParseDict({} if len(documents) == 1 else documents[1], pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise _no_pipeline(path, str(error)) from None
    if not pipeline.pipeline_info.name:
        raise _no_pipeline(path, "it has no pipelineInfo")
    return Definition(pipeline, platform)


def _no_pipeline(path: Path, why: str) -> SettingsError:
    advice = f"compile one with: kfp dsl compile --py PIPELINE.py --output {path.with_suffix('.yaml').name}"
    return SettingsError([f"{path} is no compiled pipeline ({' '.join(why.split())}); {advice}"])
