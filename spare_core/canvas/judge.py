"""The built-in models' own judges: ground truth, with their features of held-out renderings as reference."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.canvas.grid import RESOLUTION, Grid
from spare_core.errors import ModelError
from spare_core.evaluation.judgement import OTHER, Judgement, Reference, concepts_of, matching, recognise, sha256
from spare_core.evaluation.suite import Suite
from spare_core.files.atomic import read_tensors


class GridJudge:
    """A grid's two-headed network, with its features of held-out renderings as reference."""

    def __init__(self, grid: Grid, suite: Suite, device: torch.device, folder: Path | None = None) -> None:
        from spare_core.canvas.classifier import Classifier as Network

        folder = grid.weights / "judge" if folder is None else folder
        self.name = grid.name
        self._objects = matching(grid.objects, suite.objects, f"{grid.title}'s judge")
        self._styles = matching(grid.styles, suite.styles, f"{grid.title}'s judge")
        self._device = device
        tensors, metadata = _read(folder / "judge.safetensors", grid)
        reference, _ = _read(folder / "reference.safetensors", grid)
        network = Network(grid)
        try:
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
            self.accuracy = json.loads(metadata["accuracy"]) if "accuracy" in metadata else None
            features = reference["features"].float().reshape(-1, network.style_head.in_features)
            shown = Reference(features, reference["objects"].long(), reference["styles"].long())
            self.reference = self._of_suite(shown, grid)
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"{folder} holds no judge of {grid.title} ({error}); train it again with 'make {grid.name}'"
            ) from None
        self._network = network.eval().requires_grad_(False).to(device)
        self.digest = sha256([folder / "judge.safetensors"])

    def _of_suite(self, reference: Reference, grid: Grid) -> Reference | None:
        """In the suite's order, without what is not in it; None if nothing is."""
        objects = concepts_of(self._objects, len(grid.objects))[reference.objects]
        styles = concepts_of(self._styles, len(grid.styles))[reference.styles]
        inside = (objects != OTHER) & (styles != OTHER)
        return Reference(reference.features[inside], objects[inside], styles[inside]) if inside.any() else None

    @torch.no_grad()
    def judge(self, pixels: Tensor) -> Judgement:
        """See :class:`Judge`."""
        pixels = pixels.to(self._device).float()
        if pixels.shape[-2:] != (RESOLUTION, RESOLUTION):
            pixels = F.interpolate(pixels, (RESOLUTION, RESOLUTION), mode="bilinear", antialias=True)
        seen = self._network(pixels * 2.0 - 1.0)
        return Judgement(
            recognise(seen.objects, self._objects), recognise(seen.styles, self._styles), seen.features.float().cpu()
        )


def _read(path: Path, grid: Grid) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return read_tensors(path)
    except OSError as error:
        raise ModelError(
            f"{grid.title}'s judge {path} is not readable ({error}); 'make {grid.name}' trains it"
        ) from None
