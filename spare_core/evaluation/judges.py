"""The judge that a suite names: a built-in model's own, a pair of image classifiers, or CLIP."""

from __future__ import annotations

from pathlib import Path

import torch

from spare_core import built_in
from spare_core.errors import SettingsError
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.suite import Suite
from spare_core.evaluation.transformers_judges import ClassifierJudge, ClipJudge


def load_judge(suite: Suite, device: torch.device | str = "cpu") -> Judge:
    """The judge that a suite names.

    Raises:
        SettingsError: if it names none, or the judge does not know all its concepts.
        ModelError: if the judge's files cannot be used.
    """
    if suite.judge is None:
        raise SettingsError(
            [f"suite {suite.name!r} has no judge; write a YAML file with 'extends: {suite.name}' and a judge, e.g. "
             "'judge: {type: classifier, styles: DIR, objects: DIR}' or 'judge: {type: clip, model: DIR}'"]
        )  # fmt: skip
    chosen = torch.device(device)
    if (known := built_in.find(suite.judge["type"])) is not None:
        judge: Judge = known.judge(suite, chosen)
        return judge
    if suite.judge["type"] == "classifier":
        return ClassifierJudge(suite, chosen, Path(suite.judge["styles"]), Path(suite.judge["objects"]))
    return ClipJudge(suite, chosen, Path(suite.judge["model"]))
