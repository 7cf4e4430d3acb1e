"""Does a saliency of rows pay on top of the closed form? Its front of residual against drift beside the ridge's.

    python -m benchmarks.rows canvas Cat Winter Mushroom
    python -m benchmarks.rows canvas160 Giraffe Winter Pizza

Every row of the solved update D is a regression of its own, so rows can be left out. A row's score is what it is worth
to first order, |<dL/dW_i, D_i>| of the loss that forgets, alone or over the same of the loss that retains; best rows
are kept over all layers. Beside them random rows, and all rows at other ridges. Each line is measured on fresh probes.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ablation import BY_MODEL
from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.method.algorithm import Prepared, prepare
from spare_core.method.bank import Side
from spare_core.method.masks import whole_layers
from spare_core.method.prior import prior_moment
from spare_core.method.saliency import gap_target
from spare_core.method.settings import EraseSettings
from spare_core.method.solve import Encoder, Moments, overwrite, prompt_moments
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser

RIDGES = (0.0125, 0.05, 0.2, 0.8, 3.2, 12.8)
SHARES = (0.75, 0.5, 0.35, 0.25, 0.15)
SCORED_AT = (0.05, 0.2)
BATCH, BATCHES = 8, 12


def main() -> None:
    """A table of all fronts for each concept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=BY_MODEL)
    parser.add_argument("concepts", nargs="+")
    options = parser.parse_args()
    denoiser = load_denoiser(options.model, "cpu", "float32")
    settings = EraseSettings(dtype="float32")
    for concept in options.concepts:
        kind, _, surrogate = next(row for row in BY_MODEL[options.model] if row[1] == concept)
        erasures = Erasures(build_erasure(options.model, concept, surrogate, kind))  # type: ignore[arg-type]
        prepared = prepare(denoiser, erasures, settings)
        texts = prior_moment(prepared.prior, denoiser, erasures)
        moments = prompt_moments(Encoder(denoiser), erasures, texts, settings, "solve")
        print(f"\n{concept} -> {surrogate}\n\n| rows | ridge | residual | drift | unnamed | cost |")
        print("|---|---|---|---|---|---|")
        for label, ridge, adapter in candidates(denoiser, prepared, moments, settings):
            measured = prepared.reporting.measure(adapter)
            unnamed = measured.unnamed_drift or 0.0
            figures = (measured.residual, measured.mean_drift, unnamed, measured.cost(settings.drift_price))
            print(f"| {label} | {ridge:g} | " + " | ".join(f"{figure:.4f}" for figure in figures) + " |", flush=True)


def candidates(
    denoiser: UNetDenoiser, prepared: Prepared, moments: Moments, settings: EraseSettings
) -> Iterator[tuple[str, float, Adapter]]:
    """Every adapter that is compared, with what its rows are and its ridge."""
    layers = denoiser.text_layers()
    fresh = Adapter.initialise(
        denoiser, whole_layers(denoiser.target_layers(), layers), settings.lora_rank, settings.lora_alpha, settings.seed
    )
    solved = {}
    for ridge in RIDGES:
        solved[ridge] = copy.deepcopy(fresh)
        overwrite(solved[ridge], denoiser, dict.fromkeys(layers, moments), ridge)
        yield "all", ridge, solved[ridge]
    forget, retain = (gradients(denoiser, prepared, side) for side in (prepared.bank.forget, prepared.bank.retain))
    generator = torch.Generator().manual_seed(0)
    for ridge in SCORED_AT:
        deltas = {name: solved[ridge].updates[name].delta().detach() for name in layers}
        taylor = {name: (forget[name] * delta).sum(dim=1).abs() for name, delta in deltas.items()}
        harm = {name: (retain[name] * delta).sum(dim=1).abs() for name, delta in deltas.items()}
        floor = 0.01 * torch.cat([*harm.values()]).mean()
        scores = {
            "Taylor": taylor,
            "Taylor over retain": {name: taylor[name] / (harm[name] + floor) for name in layers},
            "random": {name: torch.rand(len(score), generator=generator) for name, score in taylor.items()},
        }
        for label, score in scores.items():
            for share in SHARES:
                adapter = Adapter.initialise(
                    denoiser, best_rows(denoiser, score, share), settings.lora_rank, settings.lora_alpha, settings.seed
                )
                overwrite(adapter, denoiser, dict.fromkeys(layers, moments), ridge)
                yield f"{share:.0%} by {label}", ridge, adapter


def gradients(denoiser: UNetDenoiser, prepared: Prepared, side: Side) -> dict[str, Tensor]:
    """dL/dW of the layers that read the prompt, the loss that of :func:`gap_target`, over states in turn."""
    layers = denoiser.text_layers()
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    order = torch.randperm(len(side.timesteps), generator=torch.Generator().manual_seed(0))
    for index in order[: BATCH * BATCHES].split(BATCH):
        chosen = side.take(index)
        prediction = denoiser.predict(chosen.noisy, chosen.timesteps, prepared.bank.table[chosen.student])
        F.mse_loss(prediction, gap_target(denoiser, prepared.bank, chosen)).backward()
    found = {}
    for name, layer in layers.items():
        assert layer.weight.grad is not None
        found[name] = layer.weight.grad
        layer.weight.requires_grad_(False)
        layer.weight.grad = None
    return found


def best_rows(denoiser: UNetDenoiser, scores: dict[str, Tensor], share: float) -> dict[str, LayerMask]:
    """Masks of the best ``share`` of all rows."""
    every = torch.cat([*scores.values()])
    limit = every.sort(descending=True).values[round(share * len(every)) - 1]
    masks = whole_layers(denoiser.target_layers(), ())
    for name, score in scores.items():
        masks[name] = LayerMask(score >= limit, torch.ones_like(masks[name].columns))
    return masks


if __name__ == "__main__":
    main()
