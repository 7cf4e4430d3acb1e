"""Adapters that change something, without training: random scores choose the masks, random numbers fill B."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter
from spare_core.adapters.layer_mask import Masks
from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.concepts.concept import Erasure
from spare_core.method.masks import Score, build_masks, whole_layers
from spare_core.method.settings import MaskKind
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from tests.support import stock


def load_tiny(folder: Path) -> UNetDenoiser:
    """A tiny model for exact comparisons."""
    return load_denoiser(str(folder), "cpu", "float32")


def random_masks(denoiser: UNetDenoiser, kind: MaskKind, seed: int = 0, density: float = 0.3) -> Masks:
    """Masks by random scores; those of "none" need none."""
    layers = denoiser.target_layers()
    if kind == "none":
        return whole_layers(layers, layers)
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, layer in layers.items():
        scores[name] = Score.zeros(kind, layer.weight)
        scores[name].add(torch.rand(layer.weight.shape, generator=generator))
    return build_masks(scores, kind, density)


def random_adapter(denoiser: UNetDenoiser, kind: MaskKind, rank: int = 4, seed: int = 0) -> Adapter:
    """An adapter of scale 1.5 whose effect on the predictions is plain to see."""
    adapter = Adapter.initialise(denoiser, random_masks(denoiser, kind, seed), rank, 1.5 * rank, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for update in adapter.updates.values():
        assert isinstance(update, LowRankUpdate)
        up = 0.3 * torch.randn(update.up.shape, generator=generator)
        update.up.data = up if update.moves else update.up.data  # as training would
    adapter.project()
    return adapter


def manifest_for(denoiser: UNetDenoiser) -> dict[str, Any]:
    """What ``spare.json`` must say for an adapter to be read and exported."""
    base = {"digest": denoiser.files.digest(), **denoiser.describe()}
    return {**Erasure("Neon Lines", "Photo", "style", ("Rust",), "{concept}", ()).as_dict(), "base": base,
            "residual": 0.125, "residuals": {"Neon Lines": 0.125}, "mean_drift": 0.0625}  # fmt: skip


def store(folder: Path, denoiser: UNetDenoiser, kind: MaskKind, seed: int = 0) -> tuple[Adapter, StoredAdapter]:
    """A random adapter, and the same written to ``folder`` and read back."""
    adapter = random_adapter(denoiser, kind, seed=seed)
    save_adapter(folder, adapter, denoiser.lora_prefix, manifest_for(denoiser))
    return adapter, load_adapter(folder)


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    """The change of each layer's weight."""
    return {name: update.delta().detach() for name, update in adapter.updates.items()}


@torch.no_grad()
def predict(denoiser: UNetDenoiser, *adapters: Adapter) -> Tensor:
    """Our side of :func:`tests.support.stock.predict`, with ``adapters`` on."""
    with contextlib.ExitStack() as stack:
        for adapter in adapters:
            stack.enter_context(adapter.attached(denoiser))
        return denoiser.predict(stock.noise(), stock.TIMESTEPS, denoiser.encode_prompts(stock.PROMPTS))


def measured_error(applied: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, float]:
    """Relative Frobenius error over all layers, and of the worst."""
    differences = torch.stack([(applied[name] - wanted[name]).double().norm() for name in applied])
    sizes = torch.stack([wanted[name].double().norm() for name in applied])
    return float(differences.norm() / sizes.norm()), float((differences / sizes).max())
