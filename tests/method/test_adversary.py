"""Attackers move what stands for the concept, and nothing else, towards what the frozen model says of it; what they win
is what is taught away."""

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
from spare_core.models.conditioning import Conditioning
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import random_adapter

SETTINGS = EraseSettings(
    closed_form=False, adversary="vectors", adversary_steps=2, steps=3, batch_size=4, measure_every=2, patience=1,
    enough_residual=1.0, enough_drift=1.0, examples=4, retain_examples=2, example_steps=4, heldout=2, lr=1e-3,
    dtype="float32", device="cpu",
)  # fmt: skip
ERASURES = Erasures(
    Erasure("Neon Lines", "Photo", "style", (), "A {context} image in {concept} style.", ("Cat", "Dog"))
)


@pytest.fixture(scope="module")
def bank(denoiser: UNetDenoiser) -> Bank:
    return fill_bank(denoiser, ERASURES, SETTINGS)


@pytest.fixture(scope="module")
def meter(denoiser: UNetDenoiser) -> Meter:
    return Meter(denoiser, draw_held_out(denoiser, ERASURES, SETTINGS, "choose"))


@pytest.fixture
def adapter(denoiser: UNetDenoiser) -> Adapter:
    return random_adapter(denoiser, "channel")


def moves(denoiser: UNetDenoiser, bank: Bank, adversary: Adversary) -> dict[int, list[Tensor]]:
    """What a fresh generation adds to the rows of the forget side, by row: ``(L, D)`` of what is read, or of what is
    made of it."""
    rows = bank.forget.student.tolist()
    attackers = [adversary._attacker(place, "Neon Lines") for place in range(len(rows))]
    seen: dict[str, Tensor] = {}
    encode = denoiser.encode_moved

    def spying(prompts: list[str], moves: Tensor, resolution: int = 0) -> Conditioning:
        seen["read"], seen["plain"] = moves, encode(prompts, moves, resolution).prompt_embeds
        return encode(prompts, moves, resolution)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(denoiser, "encode_moved", spying)
        asked = adversary._conditioning(rows, attackers)
    made = asked.prompt_embeds - seen["plain"]
    return {place: [seen["read"][place], made[place]] for place in range(len(rows))}


def test_each_row_is_moved_where_the_concept_stands_or_from_there_on_before_or_behind_the_text_encoder(
    denoiser: UNetDenoiser, bank: Bank
) -> None:
    adversary = Adversary(denoiser, bank, SETTINGS)
    places = [concept_places(denoiser, [bank.prompts[row]], "Neon Lines")[0] for row in bank.forget.student.tolist()]
    own, several = set(), set()
    for place, (read, made) in moves(denoiser, bank, adversary).items():
        mine, moved, other = places[place], *((read, made) if place % 2 == 0 else (made, read))
        assert other.abs().max() < 1e-5
        where = (moved.abs().sum(dim=1) > 1e-4).nonzero().flatten().tolist()
        if where == mine and torch.allclose(moved[mine[0]], moved[mine[-1]], atol=1e-5):
            own.add(place % 2)
        else:
            assert where == list(range(mine[0], mine[0] + len(where)))
            assert 2 <= len(where) <= 4
            several.add(place % 2)
    assert own == several == {0, 1}


def left(denoiser: UNetDenoiser, bank: Bank, asked: Conditioning) -> Tensor:
    """How far from the concept the rows of the forget side predict."""
    side = bank.forget
    with torch.no_grad():
        found = denoiser.predict(side.noisy, side.timesteps, asked)
    return (found - side.under_student).square().mean(dim=(1, 2, 3))


def test_attackers_come_nearer_to_the_concept_from_step_to_step(
    denoiser: UNetDenoiser, bank: Bank, adapter: Adapter
) -> None:
    """From the plain name, against a model that predicts something else under it; the rows that are left alone stay."""
    settings = dataclasses.replace(SETTINGS, adversary_rate=0.02, adversary_reach=0.0, measure_every=100)
    adversary, side = Adversary(denoiser, bank, settings), bank.forget
    with adapter.attached(denoiser):
        before = left(denoiser, bank, bank.table[side.student])
        first = left(denoiser, bank, adversary(side, 0)[0])
        for step in range(1, 6):
            asked, _ = adversary(side, step)
        last = left(denoiser, bank, asked)
    assert last.sum() < first.sum() < before.sum()
    plain = (asked.prompt_embeds - bank.table[side.student].prompt_embeds).abs().amax(dim=(1, 2)) < 1e-4
    assert 0 < plain.sum() < len(plain)
    torch.testing.assert_close(last[plain], before[plain], rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in adapter.parameters())


def test_who_is_attacked_is_not_to_have_gone_the_way_to_the_concept_and_the_others_are_taught_the_surrogate(
    denoiser: UNetDenoiser, bank: Bank, adapter: Adapter
) -> None:
    side = bank.forget
    with adapter.attached(denoiser):
        asked, way = Adversary(denoiser, bank, SETTINGS)(side, 0)
    plain = (asked.prompt_embeds - bank.table[side.student].prompt_embeds).abs().amax(dim=(1, 2)) < 1e-4
    assert not way[plain].any()
    assert torch.equal(way[~plain], (side.under_student - side.under_teacher)[~plain])


def test_its_chance_comes_from_seed_and_step_alone_and_begins_anew_at_a_measurement(
    denoiser: UNetDenoiser, bank: Bank
) -> None:
    """So a run that goes on from a measurement is the run that was never stopped."""

    def asked(settings: EraseSettings, *steps: int) -> Tensor:
        adversary = Adversary(denoiser, bank, settings)
        return [adversary(bank.forget, step)[0].prompt_embeds for step in steps][-1]

    assert torch.equal(asked(SETTINGS, 0, 1, 2, 3), asked(SETTINGS, 2, 3))
    assert not torch.equal(asked(SETTINGS, 2, 3), asked(SETTINGS, 3)), "within a generation they go on"
    assert not torch.equal(asked(SETTINGS, 2), asked(SETTINGS, 4))
    assert not torch.equal(asked(SETTINGS, 2), asked(dataclasses.replace(SETTINGS, seed=1), 2))


def test_a_step_is_taken_against_it(denoiser: UNetDenoiser, bank: Bank, adapter: Adapter) -> None:
    """The forget loss is that of the moved conditioning; without an adversary there is none."""
    profile = profile_timesteps(bank, denoiser.num_timesteps, SETTINGS.bins)
    plain = dataclasses.replace(SETTINGS, adversary="none", adversary_steps=1)
    assert adversary_of(denoiser, bank, plain) is None
    with adapter.attached(denoiser):
        asked, _ = Batches(bank, profile, SETTINGS, adversary_of(denoiser, bank, SETTINGS)).draw(2)
        with torch.no_grad():
            found = denoiser.predict(asked.noisy, asked.timesteps, asked.conditioning)
    batches = Batches(bank, profile, SETTINGS, adversary_of(denoiser, bank, SETTINGS))
    forget, _ = training_step(denoiser, batches, adapter, 2, SETTINGS, 1e-3)
    assert forget == pytest.approx(float((found - asked.taught(found)).square().mean()), rel=1e-3)
    unmoved, _ = training_step(denoiser, Batches(bank, profile, plain), adapter, 2, plain, 1e-3)
    assert forget != pytest.approx(unmoved, rel=1e-4)


def test_against_an_adversary_all_steps_are_done_and_the_last_state_stays(
    denoiser: UNetDenoiser, bank: Bank, meter: Meter
) -> None:
    """These settings would stop at the first measurement, and go back to it."""
    profile = profile_timesteps(bank, denoiser.num_timesteps, SETTINGS.bins)
    steps = []
    opposed = dataclasses.replace(SETTINGS, measure_every=1)
    for settings in (opposed, dataclasses.replace(opposed, adversary="none", adversary_steps=1)):
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
    for settings, rate in ((SETTINGS, 1e-3), (dataclasses.replace(SETTINGS, adversary="none", adversary_steps=1), 0.0)):
        state = begin_from(denoiser, Batches(bank, profile, settings), meter, found, settings)
        assert (state.lr, state.stopped_early) == (rate, rate == 0.0)
