"""What a judge says of pictures, in the terms of the suite it was loaded for.

A judge names one object and one style of every picture, gives probabilities, and features that FID is measured on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from spare_core.concepts.names import normalise
from spare_core.errors import SettingsError

OTHER: Final = -1
"""What a judge names when it sees a label of its own that the suite does not have."""


class Recognition(NamedTuple):
    """What a judge sees of one domain: probabilities ``(B, n)`` of the suite's concepts, in its order, and the concept
    named ``(B,)``.

    A judge that knows further labels leaves them the rest of the probability; if one of them wins, :data:`OTHER`.
    """

    probabilities: Tensor
    predicted: Tensor


class Judgement(NamedTuple):
    """What a judge says of a batch: objects, styles, and features ``(B, D)``; float32 and int64 on the CPU."""

    objects: Recognition
    styles: Recognition
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


def recognise(logits: Tensor, columns: Sequence[int]) -> Recognition:
    """The recognition in ``logits`` ``(B, L)`` over all of a judge's labels; ``columns[i]`` is the label of concept
    i."""
    probabilities = logits.double().softmax(dim=-1).float().cpu()
    return Recognition(probabilities[:, columns], concepts_of(columns, logits.shape[1])[logits.argmax(dim=-1).cpu()])


def sha256(files: Sequence[Path]) -> str:
    """sha256 of one file, or of the digests of several."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def concepts_of(columns: Sequence[int], labels: int) -> Tensor:
    """``(labels,)``: the concept of each label, the inverse of ``columns``."""
    concepts = torch.full((labels,), OTHER)
    concepts[torch.tensor(columns)] = torch.arange(len(columns))
    return concepts


def _key(name: str) -> str:
    return normalise(name.replace("_", " "))
