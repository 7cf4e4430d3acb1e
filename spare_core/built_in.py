"""Models that SPARE brings along, by name, with all that is known of each.

A package that brings one registers it when it is imported; :mod:`spare_core` imports those of its own. Whoever asks for
a model, a suite or a judge by name looks here, so nothing below such a package has to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BuiltIn:
    """A model with ground truth: its suite and its judge have its name too.

    Callables, so that registering loads neither weights nor libraries. ``erasure`` takes ``(concept, surrogate, kind,
    keep, aliases)`` and returns a :class:`spare_core.concepts.concept.Erasure` in the model's own prompts; ``suite``
    returns the fields of a :class:`spare_core.evaluation.suite.Suite`; ``judge`` takes that suite and a device.
    """

    name: str
    pipeline: Path
    """A diffusers directory."""
    concepts: Mapping[str, tuple[str, ...]]
    """All that it knows, by kind."""
    erasure: Callable[..., Any]
    suite: Callable[[], dict[str, Any]]
    judge: Callable[..., Any]


_REGISTERED: dict[str, BuiltIn] = {}


def register(model: BuiltIn) -> None:
    """Make ``model`` known by its name."""
    _REGISTERED[model.name] = model


def find(name: str) -> BuiltIn | None:
    """The built-in model of that name; None if there is none."""
    return _REGISTERED.get(name)


def names() -> tuple[str, ...]:
    """The names of all built-in models, in the order in which they were registered."""
    return tuple(_REGISTERED)
