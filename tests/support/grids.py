"""Small suites, hand-made verdict tables, and a judge of Canvas with random weights in the files' real layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from spare_core.canvas.classifier import Classifier as Network
from spare_core.canvas.judge import GridJudge
from spare_core.canvas.protocol import CANVAS
from spare_core.evaluation.grid import GridResult
from spare_core.evaluation.metrics import Column, Outcomes
from spare_core.evaluation.suite import Suite

STYLES = ("Neon Lines", "Photo", "Rust")
OBJECTS = ("Cat", "Dog", "Tower")
FEATURES = Network(CANVAS).style_head.in_features
ACCURACY = {"renderings": {"objects": 0.9, "styles": 0.8}}


def small_suite(**changes: Any) -> Suite:
    """Three styles, three objects, two seeds, two sampler steps."""
    values = {
        "name": "small", "styles": STYLES, "objects": OBJECTS, "template": "A {object} image in {style} style.",
        "seeds": (188, 288), "steps": 2, "guidance": 3.0, "judge": {"type": "canvas"},
    }  # fmt: skip
    return Suite(**{**values, **changes})


def write_judge(folder: Path, seed: int = 0) -> Path:
    """A random judge as the training writes it, with eight reference pictures of each cell of the whole grid."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = Network(CANVAS).half()
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "judge.safetensors", metadata={"accuracy": json.dumps(ACCURACY)})
    count = 20 * 12 * 8
    reference = {
        "features": torch.randn(count, FEATURES).half(),
        "objects": torch.arange(20).repeat_interleave(12 * 8).int(),
        "styles": torch.arange(12).repeat_interleave(8).repeat(20).int(),
    }
    save_file(reference, folder / "reference.safetensors")
    return folder


def canvas_judge(folder: Path, suite: Suite, seed: int = 0) -> GridJudge:
    """The random judge, read back for a suite."""
    return GridJudge(CANVAS, suite, torch.device("cpu"), write_judge(folder, seed))


def perfect(suite: Suite) -> Outcomes:
    """Every picture of a suite judged to be what was asked for, with probability 0.9."""
    cells = suite.cells()
    sure = torch.full((len(cells.objects),), 0.9)
    return Outcomes(Column(cells.objects, cells.objects, sure), Column(cells.styles, cells.styles, sure))


def judged(suite: Suite, style: dict[tuple[str, str], str]) -> Outcomes:
    """:func:`perfect`, but for the styles that the judge names of some (object, style) cells, probability 0.2."""
    verdicts, cells = perfect(suite), suite.cells()
    predicted, probability = cells.styles.clone(), verdicts.styles.probability.clone()
    for (obj, prompted), named in style.items():
        rows = (cells.objects == suite.objects.index(obj)) & (cells.styles == suite.styles.index(prompted))
        predicted[rows], probability[rows] = suite.styles.index(named), 0.2
    return verdicts._replace(styles=Column(cells.styles, predicted, probability))


def grid_of(suite: Suite, verdicts: Outcomes | None = None, seed: int = 0) -> GridResult:
    """A grid of random pictures with the given verdicts, perfect by default."""
    generator = torch.Generator().manual_seed(seed)
    verdicts, cells = verdicts or perfect(suite), suite.cells()
    count = len(cells.objects)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return GridResult(
        objects=cells.objects, styles=cells.styles, seeds=cells.seeds,
        predicted_objects=verdicts.objects.predicted, predicted_styles=verdicts.styles.predicted,
        object_probability=verdicts.objects.probability, style_probability=verdicts.styles.probability,
        features=torch.randn(count, 5, generator=generator),
        thumbnails=(uniform(count, 32, 32, 3) * 255).to(torch.uint8),
        contrast=0.2 + 0.1 * uniform(count), high_frequency=0.1 + 0.1 * uniform(count),
    )  # fmt: skip
