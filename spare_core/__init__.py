"""SPARE: erase concepts from text-to-image diffusion models with small, reversible adapters (arXiv 2602.07058).

Importing this package is light: names are loaded when they are first used. It imports the packages that register what
others look up by name: :mod:`spare_core.canvas` a built-in model, :mod:`spare_core.takedown` what holds its leases.
"""

from __future__ import annotations

import importlib
from typing import Any

from spare_core import canvas as _canvas  # noqa: F401
from spare_core import takedown as _takedown  # noqa: F401

_HOMES = {
    "EraseSettings": "spare_core.method.settings",
    "Erasure": "spare_core.concepts.concept",
    "SpareError": "spare_core.errors",
    "build_erasure": "spare_core.concepts.lists",
    "erase": "spare_core.runs.erase",
    "find_model": "spare_core.models.files",
    "load_adapter": "spare_core.adapters.directory",
    "load_denoiser": "spare_core.models.loading",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
