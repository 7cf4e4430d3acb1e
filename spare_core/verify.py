"""Is an adapter what it says, does stock diffusers apply it as it was trained, and does taking it off leave nothing?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from spare_core.artifact import LORA, StoredAdapter, check_base, load_adapter
from spare_core.denoiser import UNetDenoiser, load_denoiser
from spare_core.errors import AdapterError

TOLERANCE: Final = 1e-5
"""Largest difference of a float32 noise prediction that still counts as the same (DESIGN 4)."""


def verify_adapter(folder: Path, model: str | None = None, any_base: bool = False) -> dict[str, Any]:
    """Check digests; with ``model``, also the base, the predictions under stock diffusers, and the way back.

    Raises:
        AdapterError: if the files are not as recorded, no layer matches, or a check fails.
        ModelError: if ``model`` is another base and ``any_base`` is not set.
    """
    stored = load_adapter(folder)
    report: dict[str, Any] = {
        "adapter": str(folder),
        "concept": stored.manifest["concept"],
        "surrogate": stored.manifest["surrogate"],
        "sha256": stored.sha256,
        "base_digest": stored.base_digest,
        "files": "unchanged",
    }
    if model is None:
        return report
    denoiser = load_denoiser(model, "auto", "float32")
    digest = denoiser.files.digest()
    if not any_base:
        check_base(stored, digest, model)
    report["base"] = "matches" if digest == stored.base_digest else "another base, as allowed"
    before, weights = _probe(denoiser), _weights_digest(denoiser)
    with stored.adapter.to(denoiser.device).attached(denoiser):
        attached = _probe(denoiser)
    report["change_of_prediction"] = _largest(attached, before)
    if report["change_of_prediction"] == 0.0:
        raise AdapterError(f"{folder} changes no prediction of {model!r}; it does nothing")
    if LORA in stored.manifest["files"]:
        report["diffusers_difference"] = _largest(_stock_probe(denoiser, stored), attached)
        if report["diffusers_difference"] > TOLERANCE:
            raise AdapterError(
                f"{folder}: predictions under diffusers' load_lora_weights differ from the trained ones by "
                f"{report['diffusers_difference']:.1e}; at most {TOLERANCE:.0e} is allowed"
            )
    if not torch.equal(_probe(denoiser), before) or _weights_digest(denoiser) != weights:
        raise AdapterError(f"{folder}: after taking it off, {model!r} is not what it was")
    report["reversible"] = True
    return report


@torch.no_grad()
def _probe(denoiser: UNetDenoiser) -> Tensor:
    """Predictions on fixed noise at four timesteps."""
    generator = torch.Generator().manual_seed(0)
    channels, side = denoiser.weights.config.in_channels, int(denoiser.weights.config.sample_size)
    noisy = torch.randn(4, channels, side, side, generator=generator).to(denoiser.device)
    timesteps = torch.linspace(0, denoiser.num_timesteps - 1, 4).long().to(denoiser.device)
    return denoiser.predict(noisy, timesteps, denoiser.encode_prompts(["a picture"] * 4))


def _stock_probe(denoiser: UNetDenoiser, stored: StoredAdapter) -> Tensor:
    """Predictions with the adapter loaded, then unloaded, by diffusers itself."""
    denoiser.pipeline.load_lora_weights(str(stored.folder), weight_name=LORA, adapter_name="spare")
    try:
        loaded = {name for name, _ in denoiser.weights.named_modules() if name.endswith(".lora_A.spare")}
        if len(loaded) != len(stored.adapter.updates):
            raise AdapterError(
                f"diffusers applied {len(loaded)} of the {len(stored.adapter.updates)} layers of {stored.folder}"
            )
        return _probe(denoiser)
    finally:
        denoiser.pipeline.unload_lora_weights()


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _weights_digest(denoiser: UNetDenoiser) -> str:
    hasher = hashlib.sha256()
    for name, tensor in sorted(denoiser.weights.state_dict().items()):
        hasher.update(name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
