"""Who says what a picture shows: Canvas's own judge, a pair of image classifiers, or CLIP.

A judge names one object and one style of every picture, gives probabilities, and features that FID is measured on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spare_core.canvas import WEIGHTS
from spare_core.canvas.protocol import OBJECTS, RESOLUTION, STYLES
from spare_core.concept import normalise
from spare_core.errors import ModelError, SettingsError
from spare_core.evaluation.suite import Suite

OTHER: Final = -1
"""What a judge names when it sees a label of its own that the suite does not have."""


class Verdict(NamedTuple):
    """Of one domain: probabilities ``(B, n)`` of the suite's concepts, in its order, and the concept named ``(B,)``.

    A judge that knows further labels leaves them the rest of the probability; if one of them wins, :data:`OTHER`.
    """

    probabilities: Tensor
    predicted: Tensor


class Judgement(NamedTuple):
    """Of a batch: both verdicts, and features ``(B, D)``; float32 and int64 on the CPU."""

    objects: Verdict
    styles: Verdict
    features: Tensor


class Reference(NamedTuple):
    """Features ``(M, D)`` of real pictures, and what they show: rows ``(M,)`` of the suite's objects and styles."""

    features: Tensor
    objects: Tensor
    styles: Tensor


class Judge(Protocol):
    """Judges pictures against the concepts of the suite it was loaded for."""

    name: str
    digest: str
    """sha256 of its weights files."""
    accuracy: Mapping[str, Any] | None
    """Its own accuracy on pictures whose content is known, by set of pictures and domain, where it is known."""
    reference: Reference | None
    """Real pictures that came with it."""

    def judge(self, pixels: Tensor) -> Judgement:
        """``pixels``: RGB ``(B, 3, H, W)`` in [0, 1]."""


def load_judge(suite: Suite, device: torch.device | str = "cpu", canvas: Path = WEIGHTS / "judge") -> Judge:
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
    if suite.judge["type"] == "canvas":
        return CanvasJudge(suite, chosen, canvas)
    from spare_core.evaluation.transformers_judges import ClassifierJudge, ClipJudge

    if suite.judge["type"] == "classifier":
        return ClassifierJudge(suite, chosen, Path(suite.judge["styles"]), Path(suite.judge["objects"]))
    return ClipJudge(suite, chosen, Path(suite.judge["model"]))


def matching(labels: Sequence[str], names: Sequence[str], what: str) -> list[int]:
    """Row in ``labels`` of each of ``names``, whatever case, and underscores for spaces.

    Raises:
        SettingsError: with every name that has no label.
    """
    rows = {_key(label): row for row, label in enumerate(labels)}
    missing = [name for name in names if _key(name) not in rows]
    if missing:
        known = f"its labels: {', '.join(labels)}"
        raise SettingsError([f"{what} has no label for {', '.join(map(repr, missing))}; {known}"])
    return [rows[_key(name)] for name in names]


def verdict(logits: Tensor, columns: Sequence[int]) -> Verdict:
    """From ``logits`` ``(B, L)`` over all of a judge's labels; ``columns[i]`` is the label of concept i."""
    probabilities = logits.double().softmax(dim=-1).float().cpu()
    return Verdict(probabilities[:, columns], _concepts(columns, logits.shape[1])[logits.argmax(dim=-1).cpu()])


def sha256(files: Sequence[Path]) -> str:
    """Of one file its sha256; of several, that of their digests."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


class CanvasJudge:
    """Canvas's two-headed network, with its features of held-out renderings as reference."""

    name = "canvas"

    def __init__(self, suite: Suite, device: torch.device, folder: Path) -> None:
        from spare_core.canvas.judge import Judge as Network

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
        objects = _concepts(self._objects, len(OBJECTS))[reference.objects]
        styles = _concepts(self._styles, len(STYLES))[reference.styles]
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
            verdict(seen.objects, self._objects), verdict(seen.styles, self._styles), seen.features.float().cpu()
        )


def _key(name: str) -> str:
    return normalise(name.replace("_", " "))


def _concepts(columns: Sequence[int], labels: int) -> Tensor:
    """``(labels,)``: the concept of each label, the inverse of ``columns``."""
    concepts = torch.full((labels,), OTHER)
    concepts[torch.tensor(columns)] = torch.arange(len(columns))
    return concepts


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"Canvas's judge {path} cannot be read ({error}); 'make canvas' trains it") from None
