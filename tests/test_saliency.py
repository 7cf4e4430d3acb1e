"""The score of a weight is the sum over batches of the size of its gradient; all of it checked by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.errors import TrainingError
from spare_core.saliency import LOSSES, denoise_loss, gap_loss, score_layers
from spare_core.settings import EraseSettings, MaskKind
from spare_core.timesteps import TimestepProfile
from tests.toy import CONCEPT, EMBEDDINGS, KEPT, NULL_ROW, SURROGATE, ToyDenoiser, toy_examples, toy_side

PROFILE = TimestepProfile(torch.arange(0, 11, 2), torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]))
SETTINGS = EraseSettings(mask="weight", contrast=False, saliency_batches=3, batch_size=4)


def noise_for(latents: Tensor) -> Tensor:
    return torch.randn(latents.shape, generator=torch.Generator().manual_seed(11))


# --- the losses ------------------------------------------------------------------------------------------------------


def test_the_denoise_loss_compares_with_the_noise() -> None:
    denoiser, examples = ToyDenoiser(), toy_examples()
    side, timesteps = examples.forget, torch.tensor([0, 2, 4, 6, 9])
    noise = noise_for(side.latents)
    signal = 1 - timesteps.float() / 10
    noisy = signal.sqrt()[:, None] * side.latents.flatten(1) + (1 - signal).sqrt()[:, None] * noise.flatten(1)
    predicted = noisy @ denoiser.weights.mix.weight.T + EMBEDDINGS[CONCEPT] @ denoiser.weights.text.weight.T
    expected = (predicted - noise.flatten(1)).pow(2).mean()
    torch.testing.assert_close(denoise_loss(denoiser, examples, side, noise, timesteps), expected)


def test_a_velocity_model_is_compared_with_its_velocity() -> None:
    denoiser, examples = ToyDenoiser(velocity=True), toy_examples()
    side, timesteps = examples.forget, torch.full((5,), 3)
    noise = noise_for(side.latents)
    loss = denoise_loss(denoiser, examples, side, noise, timesteps)
    call = denoiser.calls[-1]
    predicted = call.noisy @ denoiser.weights.mix.weight.T + EMBEDDINGS[CONCEPT] @ denoiser.weights.text.weight.T
    torch.testing.assert_close(loss, (predicted - (noise - side.latents).flatten(1)).pow(2).mean())


def test_the_gap_loss_compares_concept_and_surrogate_on_the_same_noisy_latents() -> None:
    denoiser, examples = ToyDenoiser(timed=True), toy_examples()
    timesteps = torch.tensor([0, 2, 4, 6, 9])
    loss = gap_loss(denoiser, examples, examples.forget, noise_for(examples.forget.latents), timesteps)
    apart = (EMBEDDINGS[CONCEPT] - EMBEDDINGS[SURROGATE]) @ denoiser.weights.text.weight.T
    torch.testing.assert_close(loss, ((timesteps / 10).pow(2) * apart.pow(2).mean()).mean())
    one, two = denoiser.calls
    assert torch.equal(one.noisy, two.noisy)


def test_on_the_retain_side_the_gap_is_that_to_the_empty_prompt() -> None:
    denoiser, examples = ToyDenoiser(), toy_examples()
    for row in (KEPT, SURROGATE):
        side = toy_side([row] * 3, [row] * 3, seed=6)
        loss = gap_loss(denoiser, examples, side, noise_for(side.latents), torch.tensor([1, 5, 9]))
        apart = (EMBEDDINGS[row] - EMBEDDINGS[NULL_ROW]) @ denoiser.weights.text.weight.T
        torch.testing.assert_close(loss, apart.pow(2).mean())


def test_the_empty_prompt_itself_has_no_gap() -> None:
    side = toy_side([NULL_ROW] * 3, [NULL_ROW] * 3, seed=6)
    loss = gap_loss(ToyDenoiser(), toy_examples(), side, noise_for(side.latents), torch.tensor([1, 5, 9]))
    assert loss == 0


# --- the scores ------------------------------------------------------------------------------------------------------


def gradients(denoiser: ToyDenoiser, kind: str, *, batches: int) -> dict[str, list[Tensor]]:
    """Each batch's gradients, by the derivative written out, from what the denoiser remembers of a scoring."""
    found: dict[str, list[Tensor]] = {"mix": [], "text": []}
    calls = denoiser.calls[:batches] if kind == "denoise" else denoiser.calls[: 2 * batches]
    step = 1 if kind == "denoise" else 2
    for batch in range(batches):
        one = calls[batch * step]
        if kind == "denoise":
            _, noise = denoiser.noises[batch]
            mixed = one.noisy @ denoiser.weights.mix.weight.T + one.embeds @ denoiser.weights.text.weight.T
            error = 2 / noise.numel() * (mixed - noise.flatten(1))
            found["mix"].append(error.T @ one.noisy)
            found["text"].append(error.T @ one.embeds)
        else:
            apart = one.embeds - calls[batch * step + 1].embeds
            error = 2 / one.noisy.numel() * apart @ denoiser.weights.text.weight.T
            found["mix"].append(torch.zeros(3, 3))
            found["text"].append(error.T @ apart)
    return found


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_score_is_the_sum_of_gradient_sizes_over_batches(kind: str) -> None:
    denoiser = ToyDenoiser()
    settings = dataclasses.replace(SETTINGS, saliency=kind)
    scores = score_layers(denoiser, toy_examples(), PROFILE, settings)
    for name, each in gradients(denoiser, kind, batches=3).items():
        torch.testing.assert_close(scores[name].parts[0], torch.stack(each).abs().sum(dim=0))
        assert kind == "gap" or not torch.allclose(scores[name].parts[0], torch.stack(each).sum(dim=0).abs())


def test_a_score_is_that_of_a_plain_backward_pass() -> None:
    examples, settings = toy_examples(), dataclasses.replace(SETTINGS, saliency="denoise", saliency_batches=1)
    denoiser = ToyDenoiser()
    score = score_layers(denoiser, examples, PROFILE, settings)
    call, (_, noise) = denoiser.calls[0], denoiser.noises[0]
    weights = [denoiser.weights.mix.weight.clone(), denoiser.weights.text.weight.clone()]
    for weight in weights:
        weight.requires_grad_(True)
    predicted = F.linear(call.noisy, weights[0]) + F.linear(call.embeds, weights[1])
    expected = torch.autograd.grad(F.mse_loss(predicted, noise.flatten(1)), weights)
    torch.testing.assert_close(score["mix"].parts[0], expected[0].abs())
    torch.testing.assert_close(score["text"].parts[0], expected[1].abs())


@pytest.mark.parametrize("kind", ["channel", "module"])
def test_coarser_scores_are_means_of_the_weights_scores(kind: MaskKind) -> None:
    settings = dataclasses.replace(SETTINGS, saliency="denoise")
    fine = score_layers(ToyDenoiser(), toy_examples(), PROFILE, settings)
    coarse = score_layers(ToyDenoiser(), toy_examples(), PROFILE, dataclasses.replace(settings, mask=kind))
    for name, score in fine.items():
        weights = score.parts[0]
        means = (weights.mean(dim=1), weights.mean(dim=0)) if kind == "channel" else (weights.mean().reshape(1),)
        for part, expected in zip(coarse[name].parts, means, strict=True):
            torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("mask", ["weight", "channel", "module"])
def test_a_contrast_is_the_quotient_of_both_sides_over_a_floor(mask: MaskKind) -> None:
    settings = dataclasses.replace(SETTINGS, saliency="denoise", mask=mask)
    examples = toy_examples()
    forget = score_layers(ToyDenoiser(), examples, PROFILE, settings)
    retain = score_layers(ToyDenoiser(), dataclasses.replace(examples, forget=examples.retain), PROFILE, settings)
    first = torch.cat([score.parts[0].flatten() for score in retain.values()])
    floor = 0.01 * float(first.double().mean())
    contrasted = score_layers(ToyDenoiser(), examples, PROFILE, dataclasses.replace(settings, contrast=True))
    for name, score in contrasted.items():
        for part, above, below in zip(score.parts, forget[name].parts, retain[name].parts, strict=True):
            torch.testing.assert_close(part, above / (below + floor))


def test_a_weight_that_neither_side_moves_does_not_win_by_division() -> None:
    scores = score_layers(ToyDenoiser(), toy_examples(), PROFILE, dataclasses.replace(SETTINGS, contrast=True))
    assert torch.equal(scores["mix"].parts[0], torch.zeros(3, 3))
    assert float(scores["text"].parts[0].max()) > 0


def test_scoring_is_repeatable_and_depends_on_the_seed() -> None:
    one, two, other = (
        score_layers(
            ToyDenoiser(), toy_examples(), PROFILE, dataclasses.replace(SETTINGS, saliency="denoise", seed=seed)
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(one["mix"].parts[0], two["mix"].parts[0])
    assert not torch.equal(one["mix"].parts[0], other["mix"].parts[0])


def test_scoring_leaves_the_model_as_it_was() -> None:
    denoiser = ToyDenoiser()
    before = {name: layer.weight.clone() for name, layer in denoiser.target_layers().items()}
    score_layers(denoiser, toy_examples(), PROFILE, SETTINGS)
    for name, layer in denoiser.target_layers().items():
        assert torch.equal(layer.weight, before[name])
        assert not layer.weight.requires_grad
        assert layer.weight.grad is None
        assert not layer.weight._post_accumulate_grad_hooks


def test_a_loss_that_is_not_finite_stops_at_once_and_leaves_no_hooks() -> None:
    denoiser = ToyDenoiser()
    with pytest.raises(TrainingError, match=r"saliency loss 'gap' is nan in batch 0 .*--dtype float32"):
        score_layers(denoiser, toy_examples(EMBEDDINGS * torch.inf), PROFILE, SETTINGS)
    for layer in denoiser.target_layers().values():
        assert not layer.weight.requires_grad
        assert not layer.weight._post_accumulate_grad_hooks
