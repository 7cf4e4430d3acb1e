"""The text prior of a base model, encoded once and kept."""

from __future__ import annotations

from typing import Final

import torch

from spare_core.method.prior import Prior, build_prior, prior_texts
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import Denoiser
from spare_core.runs.base_cache import cache_key, default_folder, keep, read_kept

_FORMAT: Final = 1
"""Version of what is kept; raised whenever it changes."""


def base_prior(denoiser: Denoiser, base: str, settings: EraseSettings) -> Prior:
    """The prior of the base model of that digest; from the cache, if it was encoded on this kind of device before."""
    texts = prior_texts(denoiser, settings.prior_texts if settings.closed_form else 0)
    if not texts:
        return build_prior(denoiser, 0, settings.resolution)
    sampling = {"resolution": settings.resolution, "dtype": str(denoiser.dtype), "texts": texts}
    key, folder = cache_key(denoiser, {"format": _FORMAT, "base": base, **sampling}), default_folder("priors")
    known = read_kept(folder, key)
    if known is not None:
        return Prior(texts, known["total"], int(known["tokens"]))
    prior = build_prior(denoiser, settings.prior_texts, settings.resolution)
    keep(folder, key, {"total": prior.total, "tokens": torch.tensor(prior.tokens)})
    return prior
