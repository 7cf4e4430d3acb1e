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

from spare_core.denoiser import FP16_LOSS_SCALE, Denoiser
from spare_core.errors import TrainingError
from spare_core.examples import Examples, Side
from spare_core.masks import Masks, Score, build_masks
from spare_core.settings import EraseSettings
from spare_core.timesteps import TimestepProfile, TimestepSampler

Loss = Callable[[Denoiser, Examples, Side, Tensor, Tensor], Tensor]


def denoise_loss(denoiser: Denoiser, examples: Examples, side: Side, noise: Tensor, timesteps: Tensor) -> Tensor:
    """||eps(x_t, c) - noise||^2, the paper's; for v-prediction the target is the velocity."""
    noisy = denoiser.add_noise(side.latents, noise, timesteps)
    target = denoiser.training_target(side.latents, noise, timesteps).to(denoiser.device)
    return F.mse_loss(_predict(denoiser, examples, noisy, timesteps, side.student), target)


def gap_loss(denoiser: Denoiser, examples: Examples, side: Side, noise: Tensor, timesteps: Tensor) -> Tensor:
    """||eps(x_t, c) - eps(x_t, s)||^2: what tells the concept from what replaces it.

    On the retain side, where both prompts are the same, a kept concept is told from the empty prompt instead.
    """
    noisy = denoiser.add_noise(side.latents, noise, timesteps)
    null = torch.full_like(side.teacher, examples.null_row)
    other = torch.where(side.teacher == side.student, null, side.teacher)
    return F.mse_loss(
        _predict(denoiser, examples, noisy, timesteps, side.student),
        _predict(denoiser, examples, noisy, timesteps, other),
    )


LOSSES: dict[str, Loss] = {"denoise": denoise_loss, "gap": gap_loss}


def _predict(denoiser: Denoiser, examples: Examples, noisy: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
    return denoiser.predict(noisy.to(denoiser.device), timesteps.to(denoiser.device), examples.table[rows])


def choose_masks(denoiser: Denoiser, examples: Examples, profile: TimestepProfile, settings: EraseSettings) -> Masks:
    """The masks that ``settings`` ask for; without a mask nothing is scored."""
    if settings.mask == "none":
        scores = {name: Score.zeros("none", layer.weight.shape) for name, layer in denoiser.target_layers().items()}
    else:
        scores = score_layers(denoiser, examples, profile, settings)
    return build_masks(scores, settings.mask, settings.density)


def score_layers(
    denoiser: Denoiser, examples: Examples, profile: TimestepProfile, settings: EraseSettings
) -> dict[str, Score]:
    """The saliency of every target layer, at the granularity of ``settings.mask``.

    With ``settings.contrast`` each score is divided by the same score on the retain set: weights that everything
    needs are spared.
    """
    layers = denoiser.target_layers()
    forget = _accumulate(denoiser, layers, examples, examples.forget, profile, settings)
    if not settings.contrast:
        return forget
    retain = _accumulate(denoiser, layers, examples, examples.retain, profile, settings)
    # A floor at 1 % of the mean keeps weights that neither side moves from winning by 0/0.
    floor = 0.01 * sum(float(s.total()) for s in retain.values()) / sum(s.count() for s in retain.values())
    return {name: score.divided_by(retain[name], floor) for name, score in forget.items()}


def _accumulate(
    denoiser: Denoiser,
    layers: dict[str, nn.Linear],
    examples: Examples,
    side: Side,
    profile: TimestepProfile,
    settings: EraseSettings,
) -> dict[str, Score]:
    scores = {name: Score.zeros(settings.mask, layer.weight.shape) for name, layer in layers.items()}
    sampler = TimestepSampler.from_profile(profile, settings)
    loss_fn = LOSSES[settings.saliency]
    # A factor on all scores changes no mask.
    scale = FP16_LOSS_SCALE if denoiser.dtype is torch.float16 else 1.0
    handles = []
    for name, layer in layers.items():
        layer.weight.requires_grad_(True)
        handles.append(layer.weight.register_post_accumulate_grad_hook(_collector(scores[name])))
    try:
        for batch in range(settings.saliency_batches):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + 1009 + batch)
            index = torch.randint(len(side.latents), (settings.batch_size,), generator=generator)
            chosen = side.take(index)
            timesteps = sampler.sample(settings.batch_size, generator)
            noise = torch.randn(chosen.latents.shape, generator=generator)
            loss = loss_fn(denoiser, examples, chosen, noise, timesteps)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"saliency loss {settings.saliency!r} is {loss.item()} in batch {batch} ({denoiser.dtype}, "
                    f"timesteps {timesteps.tolist()}); try --dtype float32"
                )
            (scale * loss).backward()
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.weight.requires_grad_(False)
            layer.weight.grad = None
    if not all(bool(torch.isfinite(part).all()) for score in scores.values() for part in score.parts):
        raise TrainingError(f"the saliency's gradients are not finite ({denoiser.dtype}); try --dtype float32")
    return scores


def _collector(score: Score) -> Callable[[Tensor], None]:
    def collect(weight: Tensor) -> None:
        assert weight.grad is not None
        score.add(weight.grad.abs())
        weight.grad = None

    return collect
