"""The text prior of a base model, encoded once and kept beside what was fetched from S3."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError

from spare_core.errors import StorageError
from spare_core.files.atomic import read_tensors, write_tensors
from spare_core.method.prior import Prior, build_prior, prior_texts
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import Denoiser
from spare_core.store.cache import cache_folder

_FOLDER = "priors"


def base_prior(denoiser: Denoiser, base: str, settings: EraseSettings) -> Prior:
    """The prior of the base model of that digest; from the cache, if it was encoded on this kind of device before."""
    texts = prior_texts(denoiser, settings.prior_texts if settings.closed_form else 0)
    if not texts:
        return build_prior(denoiser, 0, settings.resolution)
    identity = [base, settings.resolution, str(denoiser.dtype), denoiser.device.type, *texts]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    # Whatever is wrong with the cache or a file in it, the prior can be made again.
    with contextlib.suppress(OSError, StorageError, SafetensorError, KeyError, ValueError):
        tensors, metadata = read_tensors(_path(name))
        return Prior(texts, tensors["total"], int(metadata["tokens"]))
    prior = build_prior(denoiser, settings.prior_texts, settings.resolution)
    with contextlib.suppress(OSError, StorageError):
        write_tensors(_path(name), {"total": prior.total}, {"tokens": str(prior.tokens)})
    return prior


def _path(name: str) -> Path:
    return cache_folder() / _FOLDER / f"{name}.safetensors"
