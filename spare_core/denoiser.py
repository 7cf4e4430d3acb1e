"""The name by which release 0.1.0 had :mod:`spare_core.models.loading`, for scripts that import it."""

from __future__ import annotations

from spare_core.models.loading import load_denoiser

__all__ = ["load_denoiser"]
