"""A step sees as many rows of each side, the empty prompt among the retained, each with the teacher's answer to it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spare_core.method.bank import Side
from spare_core.method.batches import Batch, Batches, without
from spare_core.method.gap import TimestepProfile
from spare_core.method.settings import EraseSettings
from spare_core.models.conditioning import Conditioning
from tests.support.toy import CONCEPT, EMBEDDINGS, NULL_ROW, SURROGATE, ToyDenoiser, toy_bank

PROFILE = TimestepProfile(torch.arange(11), torch.ones(10))


def drawn(size: int, steps: int) -> list[tuple[Batch, Batch]]:
    batches = Batches(toy_bank(ToyDenoiser(timed=True)), PROFILE, EraseSettings(batch_size=size))
    return [batches.draw(step) for step in range(steps)]


def answered(batch: Batch, rows: torch.Tensor) -> torch.Tensor:
    """What the frozen model predicts on these latents under ``rows``."""
    return ToyDenoiser(timed=True).predict(batch.noisy, batch.timesteps, Conditioning(rows[:, None]))


def test_the_forget_side_asks_for_the_concept_and_is_answered_for_the_surrogate() -> None:
    for forget, _ in drawn(4, 5):
        assert (forget.conditioning.prompt_embeds == EMBEDDINGS[CONCEPT]).all()
        torch.testing.assert_close(forget.target, answered(forget, EMBEDDINGS[[SURROGATE] * 4]))


def test_the_retain_side_is_answered_for_what_it_asks() -> None:
    for _, retain in drawn(4, 20):
        assert len(retain.noisy) == 4
        torch.testing.assert_close(retain.target, answered(retain, retain.conditioning.prompt_embeds[:, 0]))


@pytest.mark.parametrize("size", [1, 3, 4, 16])
def test_an_eighth_of_the_retained_rows_is_the_empty_prompt_at_least(size: int) -> None:
    """The bank's own retain side may hold it too; here it names concepts only."""
    bank = toy_bank(ToyDenoiser())
    named = bank.retain.take((bank.retain.student != NULL_ROW).nonzero().flatten())
    batches = Batches(dataclasses.replace(bank, retain=named), PROFILE, EraseSettings(batch_size=size))
    empty = [int((batches.draw(step)[1].conditioning.prompt_embeds == 0).all(dim=-1).sum()) for step in range(16)]
    assert sum(empty) == 2 * size
    assert max(empty) - min(empty) <= 1


def test_the_empty_prompt_is_asked_on_latents_of_both_sides() -> None:
    bank = toy_bank(ToyDenoiser())
    seen = {
        tuple(row.flatten().tolist())
        for step in range(200)
        for row in Batches(bank, PROFILE, EraseSettings(batch_size=8)).draw(step)[1].noisy[-1:]
    }
    for side in (bank.forget, bank.retain):
        assert seen & {tuple(row.flatten().tolist()) for row in side.noisy}


def test_the_caller_may_say_what_the_forget_side_is_conditioned_on_and_must_not_predict() -> None:
    learned = torch.full((1, 2), 7.0)

    def asking(side: Side, step: int) -> tuple[Conditioning, torch.Tensor]:
        return Conditioning(learned.expand(len(side.student), 1, 2) + step), torch.full_like(side.under_teacher, 5.0)

    batches = Batches(toy_bank(ToyDenoiser()), PROFILE, EraseSettings(batch_size=3), asking)
    forget, retain = batches.draw(2)
    assert (forget.conditioning.prompt_embeds == 9.0).all()
    assert (forget.way == 5.0).all()
    assert not retain.way.any()
    assert not (retain.conditioning.prompt_embeds == 9.0).any()


def test_a_prediction_loses_what_it_has_of_the_concept_and_nothing_else() -> None:
    surrogate, concept, other = torch.zeros(1, 1, 1, 3), torch.tensor([2.0, 0, 0]), torch.tensor([0, 0, 1.0])
    concept, other = concept.view(1, 1, 1, 3), other.view(1, 1, 1, 3)
    torch.testing.assert_close(without(0.5 * concept + other, surrogate, concept), other)
    torch.testing.assert_close(without(concept, surrogate, concept), surrogate)
    beyond = -0.5 * concept + other
    assert torch.equal(without(beyond, surrogate, concept), beyond), "who went the other way is let be"
    asked = Conditioning(torch.zeros(2, 1, 2))
    batch = Batch(torch.zeros(2, 1, 1, 3), torch.zeros(2), asked, torch.ones(2, 1, 1, 3),
                  torch.cat([torch.zeros(1, 1, 1, 3), concept]))  # fmt: skip
    found = torch.full((2, 1, 1, 3), 3.0)
    assert batch.taught(found).flatten(1).tolist() == [[1.0, 1.0, 1.0], [1.0, 3.0, 3.0]]


def test_a_steps_chance_comes_from_seed_and_step_alone() -> None:
    def noisy(step: int, seed: int) -> torch.Tensor:
        torch.manual_seed(step + seed)  # the global generator has no say
        return Batches(toy_bank(ToyDenoiser()), PROFILE, EraseSettings(seed=seed, batch_size=8)).draw(step)[0].noisy

    assert torch.equal(noisy(3, 0), noisy(3, 0))
    assert not torch.equal(noisy(3, 0), noisy(4, 0))
    assert not torch.equal(noisy(3, 0), noisy(3, 1))
