"""Is an adapter what it says, does stock diffusers apply it as it was trained, and does taking it off leave nothing?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from spare_core.adapters.directory import StoredAdapter, check_base, load_adapter
from spare_core.adapters.manifest import LORA
from spare_core.concepts.erasures import Erasures
from spare_core.errors import AdapterError
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser

TOLERANCE: Final = 1e-5
"""Largest difference of a float32 noise prediction that still counts as the same: 84 units in the last place
of a prediction of 1. What only rounds otherwise, as kernels do that add up in another order, stays below it."""


def verify_adapter(folder: Path, model: str | None = None, any_base: bool = False) -> dict[str, Any]:
    """Check digests; with ``model``, also the base, the predictions under stock diffusers, and the way back.

    Raises:
        AdapterError: if the files are not as recorded, no layer matches, or a check fails.
        ModelError: if ``model`` is another base and ``any_base`` is not set.
    """
    stored = load_adapter(folder)
    report: dict[str, Any] = {
        "adapter": str(folder),
        "erased": Erasures.of(stored.manifest).surrogates(),
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
    report["in_stock_diffusers"] = _how_it_loads(denoiser)
    before, state = _probe(denoiser), _state(denoiser)
    attached = attached_probe(denoiser, stored)
    report["change_of_prediction"] = _largest(attached, before)
    if report["change_of_prediction"] == 0.0:
        raise AdapterError(f"{folder} changes no prediction of {model!r}; it does nothing")
    if LORA in stored.manifest["files"]:
        report["diffusers_difference"] = stock_difference(
            denoiser, attached, folder / LORA, len(stored.adapter.updates)
        )
        if report["diffusers_difference"] > TOLERANCE:
            raise AdapterError(
                f"{folder}: predictions under diffusers' load_lora_weights differ from the trained ones by "
                f"{report['diffusers_difference']:.1e}; at most {TOLERANCE:.0e} is allowed"
            )
    _check_way_back(denoiser, before, state, folder, model)
    report["reversible"] = True
    return report


def _check_way_back(denoiser: UNetDenoiser, before: Tensor, state: tuple[str, int], folder: Path, model: str) -> None:
    """Weights, exactly, and what hangs on the layers. Predictions too, in case something acts from elsewhere; but two
    computations of one prediction may round otherwise, so these only within :data:`TOLERANCE`."""
    (weights, hooks), (weights_after, hooks_after) = state, _state(denoiser)
    left = _largest(_probe(denoiser), before)
    allowed = TOLERANCE * max(1.0, float(before.abs().max()))
    found = [
        *(["its weights have changed"] if weights_after != weights else []),
        *([f"{hooks_after - hooks:+d} hooks act on its layers"] if hooks_after != hooks else []),
        *([f"its predictions differ by {left:.1e}, more than {allowed:.1e}"] if left > allowed else []),
    ]
    if found:
        raise AdapterError(f"{folder}: after taking it off, {model!r} is not what it was: {'; '.join(found)}")


@torch.no_grad()
def _probe(denoiser: UNetDenoiser) -> Tensor:
    """Predictions on fixed noise at four timesteps."""
    generator = torch.Generator().manual_seed(0)
    channels, side = denoiser.weights.config.in_channels, int(denoiser.weights.config.sample_size)
    noisy = torch.randn(4, channels, side, side, generator=generator).to(denoiser.device)
    timesteps = torch.linspace(0, denoiser.num_timesteps - 1, 4).long().to(denoiser.device)
    return denoiser.predict(noisy, timesteps, denoiser.encode_prompts(["a picture"] * 4))


def attached_probe(denoiser: UNetDenoiser, stored: StoredAdapter) -> Tensor:
    """Predictions on fixed noise with the adapter on, as it was trained."""
    with stored.adapter.to(denoiser.device).attached(denoiser):
        return _probe(denoiser)


def stock_difference(denoiser: UNetDenoiser, trained: Tensor, file: Path, layers: int) -> float:
    """How far predictions are apart at most with ``file``, of so many ``layers``, loaded, then unloaded, by diffusers
    itself, and those of :func:`attached_probe`.

    Raises:
        AdapterError: if diffusers applies another number of layers.
    """
    denoiser.pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="spare")
    try:
        loaded = {name for name, _ in denoiser.weights.named_modules() if name.endswith(".lora_A.spare")}
        if len(loaded) != layers:
            raise AdapterError(f"diffusers applied {len(loaded)} of the {layers} layers of {file}")
        return _largest(_probe(denoiser), trained)
    finally:
        denoiser.pipeline.unload_lora_weights()


def _how_it_loads(denoiser: UNetDenoiser) -> str:
    """What who loads the base without us has to write for it."""
    absent = denoiser.files.absent()
    if not absent:
        return "loads by its path alone"
    return f"lists what is not there: give {', '.join(f'{name}=None' for name in absent)} to from_pretrained"


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _state(denoiser: UNetDenoiser) -> tuple[str, int]:
    """sha256 over the names and bytes of all weights, and the number of forward hooks."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(denoiser.weights.state_dict().items()):
        hasher.update(name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in denoiser.weights.modules())
    return hasher.hexdigest(), hooks
