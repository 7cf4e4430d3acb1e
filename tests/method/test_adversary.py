"""The adversary moves what stands for the concept, and nothing else, towards what the frozen model says of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.method.adversary import Adversary, adversary_of
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.batches import Batches
from spare_core.method.distill import distill, new_state, training_step
from spare_core.method.gap import profile_timesteps
from spare_core.method.places import concept_places
from spare_core.method.probes import draw_held_out
from spare_core.method.rate import begin_from
from spare_core.method.residual import Measurement, Meter
from spare_core.method.settings import EraseSettings
from spare_core.method.start import Start
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import random_adapter

SETTINGS = EraseSettings(
    closed_form=False, adversary="conditioning", adversary_steps=4, steps=3, batch_size=4, measure_every=1, patience=1,
    enough_residual=1.0, enough_drift=1.0, examples=4, retain_examples=2, example_steps=4, heldout=2, lr=1e-3,
    dtype="float32", device="cpu",
)  # fmt: skip
ERASURES = Erasures(
    Erasure("Neon Lines", "Photo", "style", (), "A {context} image in {concept} style.", ("Cat", "Dog"))
)
STEPS = range(12)


@pytest.fixture(scope="module")
def bank(denoiser: UNetDenoiser) -> Bank:
    return fill_bank(denoiser, ERASURES, SETTINGS)


@pytest.fixture(scope="module")
def meter(denoiser: UNetDenoiser) -> Meter:
    return Meter(denoiser, draw_held_out(denoiser, ERASURES, SETTINGS, "choose"))


@pytest.fixture
def adapter(denoiser: UNetDenoiser) -> Adapter:
    return random_adapter(denoiser, "channel")


def moves(adversary: Adversary, bank: Bank, step: int) -> Tensor:
    """What is added to the embeddings of the forget side, ``(B, L, D)``."""
    asked = adversary(bank.forget, step)
    return asked.prompt_embeds - bank.table[bank.forget.student].prompt_embeds


def test_it_moves_the_concepts_places_and_in_some_steps_more_from_there_on(denoiser: UNetDenoiser, bank: Bank) -> None:
    adversary = Adversary(denoiser, bank, dataclasses.replace(SETTINGS, adversary_steps=1))
    places = [concept_places(denoiser, [bank.prompts[row]], "Neon Lines")[0] for row in bank.forget.student.tolist()]
    plain, own, several = 0, 0, 0
    for step in STEPS:
        for row, mine in zip(moves(adversary, bank, step), places, strict=True):
            where = row.abs().sum(dim=1).nonzero().flatten().tolist()
            if not where:
                plain += 1
            elif where == mine and torch.allclose(row[mine[0]], row[mine[-1]], atol=1e-5):
                own += 1
            else:
                assert where == list(range(mine[0], where[-1] + 1))
                assert len(where) <= 8
                several += 1
    assert min(plain, own, several) > len(STEPS)


def test_it_comes_nearer_to_the_concept_than_it_was(denoiser: UNetDenoiser, bank: Bank, adapter: Adapter) -> None:
    """From the plain name, against a model that predicts something else under it."""
    side = bank.forget

    def left(steps: int) -> Tensor:
        settings = dataclasses.replace(SETTINGS, adversary_steps=steps, adversary_rate=0.02, adversary_reach=0.0)
        asked = Adversary(denoiser, bank, settings)(side, 0)
        found = denoiser.predict(side.noisy, side.timesteps, asked)
        return (found - side.under_student).square().mean(dim=(1, 2, 3))

    with adapter.attached(denoiser), torch.no_grad():
        found = denoiser.predict(side.noisy, side.timesteps, bank.table[side.student])
        at_first = (found - side.under_student).square().mean(dim=(1, 2, 3))
    with adapter.attached(denoiser):
        once, often = left(1).detach(), left(8).detach()
    assert (often <= at_first * 1.0001).all()
    assert often.sum() < once.sum() < at_first.sum()
    assert all(parameter.grad is None for parameter in adapter.parameters())


def test_its_chance_comes_from_seed_and_step_alone(denoiser: UNetDenoiser, bank: Bank) -> None:
    adversary = Adversary(denoiser, bank, SETTINGS)
    assert torch.equal(moves(adversary, bank, 3), moves(adversary, bank, 3))
    assert not torch.equal(moves(adversary, bank, 3), moves(adversary, bank, 4))
    other = Adversary(denoiser, bank, dataclasses.replace(SETTINGS, seed=1))
    assert not torch.equal(moves(adversary, bank, 3), moves(other, bank, 3))


def test_a_step_is_taken_against_it(denoiser: UNetDenoiser, bank: Bank, adapter: Adapter) -> None:
    """The forget loss is that of the moved conditioning; without an adversary there is none."""
    profile = profile_timesteps(bank, denoiser.num_timesteps, SETTINGS.bins)
    plain = dataclasses.replace(SETTINGS, adversary="none", adversary_steps=2)
    assert adversary_of(denoiser, bank, plain) is None
    batches = Batches(bank, profile, SETTINGS, adversary_of(denoiser, bank, SETTINGS))
    with adapter.attached(denoiser), torch.no_grad():
        with torch.enable_grad():
            asked, _ = batches.draw(2)
        found = denoiser.predict(asked.noisy, asked.timesteps, asked.conditioning)
    forget, _ = training_step(denoiser, batches, adapter, 2, SETTINGS, 1e-3)
    assert forget == pytest.approx(float((found - asked.target).square().mean()), rel=1e-4)
    unmoved, _ = training_step(denoiser, Batches(bank, profile, plain), adapter, 2, plain, 1e-3)
    assert forget != pytest.approx(unmoved, rel=1e-4)


def test_against_an_adversary_all_steps_are_done_and_the_last_state_stays(
    denoiser: UNetDenoiser, bank: Bank, meter: Meter
) -> None:
    """These settings would stop at the first measurement, and go back to it."""
    profile = profile_timesteps(bank, denoiser.num_timesteps, SETTINGS.bins)
    steps = []
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, adversary="none", adversary_steps=2)):
        batches = Batches(bank, profile, settings, adversary_of(denoiser, bank, settings))
        state = new_state(random_adapter(denoiser, "channel"), 1e-6)
        distill(denoiser, batches, meter, state, settings)
        steps.append((state.step, state.taken_back))
    assert steps[0] == (3, 0)
    assert steps[1] != (3, 0)


def test_a_start_that_is_good_enough_is_trained_all_the_same(denoiser: UNetDenoiser, bank: Bank, meter: Meter) -> None:
    """What it measures says nothing about an adversary."""
    profile = profile_timesteps(bank, denoiser.num_timesteps, SETTINGS.bins)
    found = Start(random_adapter(denoiser, "channel"), 1.0, Measurement({"Neon Lines": 0.0}, {"Cat": 0.0}))
    for settings, rate in ((SETTINGS, 1e-3), (dataclasses.replace(SETTINGS, adversary="none", adversary_steps=2), 0.0)):
        state = begin_from(denoiser, Batches(bank, profile, settings), meter, found, settings)
        assert (state.lr, state.stopped_early) == (rate, rate == 0.0)
