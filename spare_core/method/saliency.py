"""Which weights speak for a concept: the gradient saliency of the denoiser's layers.

The score of a weight w is the sum over batches of |dL/dw|. Gradients are reduced to the mask's granularity as soon as
each layer's is ready and then freed, so memory holds one layer's gradient and the reduced scores, never all gradients
of a model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spare_core.adapters.layer_mask import Masks
from spare_core.errors import TrainingError
from spare_core.method.bank import Bank, Side
from spare_core.method.gap import StateSampler, TimestepProfile, TimestepSampler
from spare_core.method.masks import Score, build_masks, whole_layers
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import FP16_LOSS_SCALE, Denoiser
from spare_core.streams import stream

Target = Callable[[Denoiser, Bank, Side], Tensor]


def denoise_target(denoiser: Denoiser, bank: Bank, side: Side) -> Tensor:
    """Target of the paper's loss ||eps(x_t, c) - noise||^2: the noise between x_t and the picture that its trajectory
    ends in; for v-prediction, their velocity. ``(B, C, H, W)``."""
    latents = side.latents[side.picture]
    noise = denoiser.noise_in(side.noisy, latents, side.timesteps)
    return denoiser.training_target(latents, noise, side.timesteps)


def gap_target(denoiser: Denoiser, bank: Bank, side: Side) -> Tensor:
    """Target of the loss ||eps(x_t, c) - sg eps(x_t, s)||^2, which tells the concept from what replaces it; its
    gradient is the first that the training will see. ``(B, C, H, W)``.

    On the retain side, where both prompts are the same, a kept concept is told from the empty prompt instead.
    """
    kept = (side.teacher == side.student)[:, None, None, None]
    return torch.where(kept, side.under_empty, side.under_teacher)


TARGETS: dict[str, Target] = {"denoise": denoise_target, "gap": gap_target}


def choose_masks(denoiser: Denoiser, bank: Bank, profile: TimestepProfile, settings: EraseSettings) -> Masks:
    """The masks that ``settings`` ask for; nothing is scored where it would not choose."""
    layers = denoiser.target_layers()
    if settings.mask == "none":
        return whole_layers(layers, layers)
    if settings.mask == "text":
        return whole_layers(layers, denoiser.text_layers())
    return build_masks(score_layers(denoiser, bank, profile, settings), settings.mask, settings.density)


def score_layers(denoiser: Denoiser, bank: Bank, profile: TimestepProfile, settings: EraseSettings) -> dict[str, Score]:
    """The saliency of every target layer, at the granularity of ``settings.mask``.

    With ``settings.contrast`` each score is divided by the same score on the retain set: weights that everything
    needs are spared.
    """
    layers = denoiser.target_layers()
    forget = _accumulate(denoiser, layers, bank, bank.forget, profile, settings)
    if not settings.contrast:
        return forget
    retain = _accumulate(denoiser, layers, bank, bank.retain, profile, settings)
    # A floor at 1 % of the mean keeps weights that neither side moves from winning by 0/0.
    floor = 0.01 * sum(float(s.total()) for s in retain.values()) / sum(s.count() for s in retain.values())
    return {name: score.divided_by(retain[name], floor) for name, score in forget.items()}


def _accumulate(
    denoiser: Denoiser,
    layers: dict[str, nn.Linear],
    bank: Bank,
    side: Side,
    profile: TimestepProfile,
    settings: EraseSettings,
) -> dict[str, Score]:
    scores = {name: Score.zeros(settings.mask, layer.weight) for name, layer in layers.items()}
    sampler = StateSampler(TimestepSampler.from_profile(profile, settings), side.timesteps)
    target = TARGETS[settings.saliency]
    # A factor on all scores changes no mask.
    scale = FP16_LOSS_SCALE if denoiser.dtype is torch.float16 else 1.0
    handles = []
    for name, layer in layers.items():
        layer.weight.requires_grad_(True)
        handles.append(layer.weight.register_post_accumulate_grad_hook(_collector(scores[name])))
    try:
        for batch in range(settings.saliency_batches):
            generator = stream(settings.seed, "saliency", batch)
            chosen = side.take(sampler.sample(settings.batch_size, generator))
            prediction = denoiser.predict(
                chosen.noisy.to(denoiser.device), chosen.timesteps.to(denoiser.device), bank.table[chosen.student]
            )
            loss = F.mse_loss(prediction, target(denoiser, bank, chosen).to(denoiser.device))
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"saliency loss {settings.saliency!r} is {loss.item()} in batch {batch} ({denoiser.dtype}, "
                    f"timesteps {chosen.timesteps.tolist()}); try --dtype float32"
                )
            (scale * loss).backward()
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.weight.requires_grad_(False)
            layer.weight.grad = None
    scores = {name: score.cpu() for name, score in scores.items()}
    if not all(bool(torch.isfinite(part).all()) for score in scores.values() for part in score.parts):
        raise TrainingError(f"the saliency's gradients are not finite ({denoiser.dtype}); try --dtype float32")
    return scores


def _collector(score: Score) -> Callable[[Tensor], None]:
    def collect(weight: Tensor) -> None:
        assert weight.grad is not None
        score.add(weight.grad.abs())
        weight.grad = None

    return collect
