"""The score of a weight is the sum over batches of the size of its gradient; all of it checked by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from spare_core.errors import TrainingError
from spare_core.method.bank import Side
from spare_core.method.gap import TimestepProfile
from spare_core.method.saliency import TARGETS, choose_masks, score_layers
from spare_core.method.settings import EraseSettings, MaskKind, SaliencyLoss
from spare_core.models.conditioning import Conditioning
from tests.support.toy import EMBEDDINGS, KEPT, SURROGATE, ToyDenoiser, toy_bank, toy_side

PROFILE = TimestepProfile(torch.arange(0, 11, 2), torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]))
SETTINGS = EraseSettings(mask="weight", contrast=False, saliency_batches=3, batch_size=4)


def asked_for(kind: str, denoiser: ToyDenoiser, side: Side) -> Tensor:
    """The target of every row, ``(N, 3)``."""
    return TARGETS[kind](denoiser, toy_bank(denoiser), side).flatten(1)


# --- the targets -----------------------------------------------------------------------------------------------------


def test_the_denoise_loss_compares_with_the_noise() -> None:
    denoiser = ToyDenoiser()
    side = toy_bank(denoiser).forget
    noise = asked_for("denoise", denoiser, side).reshape(side.noisy.shape)
    torch.testing.assert_close(denoiser.add_noise(side.latents[side.picture], noise, side.timesteps), side.noisy)


def test_a_velocity_model_is_compared_with_its_velocity() -> None:
    denoiser, plain = ToyDenoiser(velocity=True), ToyDenoiser()
    side = toy_bank(denoiser).forget
    noise = asked_for("denoise", plain, side)
    torch.testing.assert_close(asked_for("denoise", denoiser, side), noise - side.latents.flatten(1))


def test_the_gap_loss_compares_with_the_surrogate_on_the_same_noisy_latents() -> None:
    denoiser = ToyDenoiser(timed=True)
    side = toy_bank(denoiser).forget
    expected = denoiser.predict(side.noisy, side.timesteps, Conditioning(EMBEDDINGS[[SURROGATE] * 5][:, None]))
    torch.testing.assert_close(asked_for("gap", denoiser, side), expected.flatten(1))


def test_on_the_retain_side_the_gap_is_that_to_the_empty_prompt() -> None:
    denoiser = ToyDenoiser()
    side = toy_side(denoiser, [KEPT, SURROGATE], [KEPT, SURROGATE], seed=6)
    expected = side.noisy.flatten(1) @ denoiser.weights.mix.weight.T
    torch.testing.assert_close(asked_for("gap", denoiser, side), expected)


# --- the scores ------------------------------------------------------------------------------------------------------


def gradients(denoiser: ToyDenoiser, kind: str) -> dict[str, list[Tensor]]:
    """Each batch's gradients, by the derivative written out, from what the denoiser remembers of a scoring."""
    found: dict[str, list[Tensor]] = {"mix": [], "text": []}
    side = toy_bank(denoiser).forget
    targets = dict(zip(side.noisy.sum(dim=1).flatten().tolist(), asked_for(kind, denoiser, side), strict=True))
    for one in denoiser.calls:
        target = torch.stack([targets[total] for total in one.noisy.sum(dim=1).tolist()])
        mixed = one.noisy @ denoiser.weights.mix.weight.T + one.embeds @ denoiser.weights.text.weight.T
        error = 2 / target.numel() * (mixed - target)
        found["mix"].append(error.T @ one.noisy)
        found["text"].append(error.T @ one.embeds)
    return found


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_a_score_is_the_sum_of_gradient_sizes_over_batches(kind: SaliencyLoss) -> None:
    denoiser = ToyDenoiser()
    settings = dataclasses.replace(SETTINGS, saliency=kind)
    scores = score_layers(denoiser, toy_bank(denoiser), PROFILE, settings)
    assert len(denoiser.calls) == 3
    for name, each in gradients(denoiser, kind).items():
        torch.testing.assert_close(scores[name].parts[0], torch.stack(each).abs().sum(dim=0))
        assert name == "text" or not torch.allclose(scores[name].parts[0], torch.stack(each).sum(dim=0).abs())


def test_the_layers_that_read_the_prompt_move_as_a_whole_and_cost_no_prediction() -> None:
    denoiser = ToyDenoiser()
    masks = choose_masks(denoiser, toy_bank(denoiser), PROFILE, EraseSettings(mask="text"))
    assert masks.keys() == denoiser.target_layers().keys()
    assert 0 < len(denoiser.text_layers()) < len(masks)
    for name, mask in masks.items():
        assert mask.dense().all() if name in denoiser.text_layers() else not mask.dense().any()
    assert not denoiser.calls


@pytest.mark.parametrize("kind", ["channel", "module"])
def test_coarser_scores_are_means_of_the_weights_scores(kind: MaskKind) -> None:
    settings = dataclasses.replace(SETTINGS, saliency="denoise")
    fine = score_layers(ToyDenoiser(), toy_bank(ToyDenoiser()), PROFILE, settings)
    coarse = score_layers(ToyDenoiser(), toy_bank(ToyDenoiser()), PROFILE, dataclasses.replace(settings, mask=kind))
    for name, score in fine.items():
        weights = score.parts[0]
        means = (weights.mean(dim=1), weights.mean(dim=0)) if kind == "channel" else (weights.mean().reshape(1),)
        for part, expected in zip(coarse[name].parts, means, strict=True):
            torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("mask", ["weight", "channel", "module"])
def test_a_contrast_is_the_quotient_of_both_sides_over_a_floor(mask: MaskKind) -> None:
    settings = dataclasses.replace(SETTINGS, saliency="denoise", mask=mask)
    bank = toy_bank(ToyDenoiser())
    forget = score_layers(ToyDenoiser(), bank, PROFILE, settings)
    retain = score_layers(ToyDenoiser(), dataclasses.replace(bank, forget=bank.retain), PROFILE, settings)
    first = torch.cat([score.parts[0].flatten() for score in retain.values()])
    floor = 0.01 * float(first.double().mean())
    contrasted = score_layers(ToyDenoiser(), bank, PROFILE, dataclasses.replace(settings, contrast=True))
    for name, score in contrasted.items():
        for part, above, below in zip(score.parts, forget[name].parts, retain[name].parts, strict=True):
            torch.testing.assert_close(part, above / (below + floor))


def test_a_weight_that_neither_side_moves_does_not_win_by_division() -> None:
    denoiser = ToyDenoiser()
    embeddings = EMBEDDINGS * torch.tensor([1.0, 0.0])  # no prompt reaches the second column
    bank = toy_bank(denoiser, embeddings)
    scores = score_layers(denoiser, bank, PROFILE, dataclasses.replace(SETTINGS, contrast=True))
    assert torch.equal(scores["text"].parts[0][:, 1], torch.zeros(3))
    assert float(scores["text"].parts[0].max()) > 0


def test_scoring_is_repeatable_and_depends_on_the_seed() -> None:
    one, two, other = (
        score_layers(
            ToyDenoiser(),
            toy_bank(ToyDenoiser()),
            PROFILE,
            dataclasses.replace(SETTINGS, saliency="denoise", seed=seed),
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(one["mix"].parts[0], two["mix"].parts[0])
    assert not torch.equal(one["mix"].parts[0], other["mix"].parts[0])


def test_scoring_leaves_the_model_as_it_was() -> None:
    denoiser = ToyDenoiser()
    before = {name: layer.weight.clone() for name, layer in denoiser.target_layers().items()}
    score_layers(denoiser, toy_bank(denoiser), PROFILE, SETTINGS)
    for name, layer in denoiser.target_layers().items():
        assert torch.equal(layer.weight, before[name])
        assert not layer.weight.requires_grad
        assert layer.weight.grad is None
        assert not layer.weight._post_accumulate_grad_hooks


def test_a_loss_that_is_not_finite_stops_at_once_and_leaves_no_hooks() -> None:
    denoiser = ToyDenoiser()
    with pytest.raises(TrainingError, match=r"saliency loss 'gap' is nan in batch 0 .*--dtype float32"):
        score_layers(denoiser, toy_bank(denoiser, EMBEDDINGS * torch.inf), PROFILE, SETTINGS)
    for layer in denoiser.target_layers().values():
        assert not layer.weight.requires_grad
        assert not layer.weight._post_accumulate_grad_hooks
