"""Canvas's own judge: ground truth, with its features of held-out renderings as reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.canvas.files import WEIGHTS
from spare_core.canvas.protocol import OBJECTS, RESOLUTION, STYLES
from spare_core.errors import ModelError
from spare_core.evaluation.judgement import OTHER, Judgement, Reference, concepts_of, matching, recognise, sha256
from spare_core.evaluation.suite import Suite
from spare_core.files.atomic import read_tensors

JUDGE: Final = WEIGHTS / "judge"


class CanvasJudge:
    """Canvas's two-headed network, with its features of held-out renderings as reference."""

    name = "canvas"

    def __init__(self, suite: Suite, device: torch.device, folder: Path = JUDGE) -> None:
        from spare_core.canvas.classifier import Classifier as Network

        self._objects = matching(tuple(OBJECTS), suite.objects, "Canvas's judge")
        self._styles = matching(STYLES, suite.styles, "Canvas's judge")
        self._device = device
        tensors, metadata = _read(folder / "judge.safetensors")
        reference, _ = _read(folder / "reference.safetensors")
        network = Network()
        try:
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
            self.accuracy = json.loads(metadata["accuracy"]) if "accuracy" in metadata else None
            features = reference["features"].float().reshape(-1, network.style_head.in_features)
            shown = Reference(features, reference["objects"].long(), reference["styles"].long())
            self.reference = self._of_suite(shown)
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"{folder} holds no judge of Canvas ({error}); train it again with 'make canvas'"
            ) from None
        self._network = network.eval().requires_grad_(False).to(device)
        self.digest = sha256([folder / "judge.safetensors"])

    def _of_suite(self, reference: Reference) -> Reference | None:
        """In the suite's order, without what is not in it; None if nothing is."""
        objects = concepts_of(self._objects, len(OBJECTS))[reference.objects]
        styles = concepts_of(self._styles, len(STYLES))[reference.styles]
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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return read_tensors(path)
    except OSError as error:
        raise ModelError(f"Canvas's judge {path} cannot be read ({error}); 'make canvas' trains it") from None
