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
from spare_core.method.places import concept_places, unsaid
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


def test_a_row_is_asked_with_tokens_in_place_of_the_name_or_with_vectors_where_it_stands(
    denoiser: UNetDenoiser, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    adversary, rows = Adversary(denoiser, bank, SETTINGS), bank.forget.student.tolist()
    attackers = [adversary._attacker(place, "Neon Lines") for place in range(len(rows))]
    encode, seen = denoiser.encode_as, []

    def spying(prompts: list[str], words: list[str], vectors: Tensor, resolution: int = 0) -> Conditioning:
        seen.append((prompts, vectors, encode(prompts, words, vectors, resolution).prompt_embeds))
        return encode(prompts, words, vectors, resolution)

    monkeypatch.setattr(denoiser, "encode_as", spying)
    with torch.no_grad():
        made = adversary._conditioning(rows, attackers).prompt_embeds
    ((prompts, tokens, plain),) = seen
    counts = set()
    for place, (row, one) in enumerate(zip(rows, attackers, strict=True)):
        moved = ((made - plain)[place].abs().sum(dim=1) > 1e-4).nonzero().flatten().tolist()
        count, (mine,) = len(one.vectors), concept_places(denoiser, [bank.prompts[row]], "Neon Lines")
        counts.add((one.reads, count > 1))
        if one.reads:
            words = " ".join(adversary._words[:count])
            assert prompts[place] == bank.prompts[row].replace("Neon Lines", words)
            assert torch.equal(tokens[place, :count], one.vectors)
            assert moved == []
        else:
            assert prompts[place] == bank.prompts[row]
            assert moved == (mine if count == 1 else [*range(mine[0], mine[0] + count)])
    assert counts == {(reads, several) for reads in (True, False) for several in (True, False)}


def test_what_stands_for_tokens_stands_nowhere_else(denoiser: UNetDenoiser) -> None:
    """Not within a word either, where a tokenizer cuts it there."""
    whole, (end,) = "sand", denoiser.token_ids(["and"])
    (ids,) = denoiser.token_ids([whole])
    assert end[1] in ids, "this tokenizer cuts it there"
    free = unsaid(denoiser, [whole, "Neon Lines"], 8)
    assert len(free) == 8
    assert "and" in denoiser.words()
    assert "and" not in free
    assert not {ids[1] for ids in denoiser.token_ids(free)} & {*ids, *denoiser.token_ids(["Neon Lines"])[0][1:-1]}


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


def test_of_one_row_a_step_nobody_attacks_it_in_every_fourth(denoiser: UNetDenoiser, bank: Bank) -> None:
    """Else its name would never be overwritten."""
    adversary = Adversary(denoiser, bank, SETTINGS)
    one = bank.forget.take(torch.tensor([0]))
    assert [bool(adversary(one, step)[1].any()) for step in range(5)] == [False, True, True, True, False]


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
