"""One step is the equation; the loop changes the adapter, nothing else, and stops when it stops helping."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spare_core.adapters.layer_mask import LayerMask, Masks
from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.errors import TrainingError
from spare_core.method.batches import Batches
from spare_core.method.distill import (
    Best,
    TrainingState,
    advance,
    distill,
    enough,
    learning_rate,
    new_state,
    plateaued,
    training_step,
)
from spare_core.method.gap import TimestepProfile
from spare_core.method.residual import Measurement, Meter
from spare_core.method.settings import EraseSettings
from spare_core.runs.results import restore_state, save_state
from tests.support.toy import EMBEDDINGS, SURROGATE, ToyDenoiser, toy_bank, toy_held_out

SETTINGS = EraseSettings(rank=2, alpha=3.0, batch_size=4, forget_weight=0.3, retain_weight=2.0, steps=100)
LR = 0.05
PROFILE = TimestepProfile(torch.arange(11), torch.ones(10))
FULL: Masks = {
    "mix": LayerMask(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)),
    "text": LayerMask(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)),
}
CHANNELS: Masks = {
    "mix": LayerMask(torch.tensor([True, False, True]), torch.tensor([False, True, True])),
    "text": LayerMask(torch.tensor([False, True, True]), torch.tensor([True, True])),
}
WEIGHTS: Masks = {
    name: LayerMask(entries.any(dim=1), entries.any(dim=0), entries)
    for name, entries in {
        "mix": torch.tensor([[True, False, False], [False, False, False], [False, True, True]]),
        "text": torch.tensor([[True, False], [False, True], [True, True]]),
    }.items()
}


def moving(denoiser: ToyDenoiser, masks: Masks = FULL) -> Adapter:
    """An adapter that already changes something, so that every gradient is other than zero."""
    adapter = Adapter.initialise(denoiser, masks, SETTINGS.rank, SETTINGS.lora_alpha, seed=0)
    for update in adapter.updates.values():
        update.up.data = 0.3 * torch.randn(update.up.shape, generator=torch.Generator().manual_seed(1))
    adapter.project()
    return adapter


def batches(denoiser: ToyDenoiser, settings: EraseSettings = SETTINGS, embeddings: Tensor = EMBEDDINGS) -> Batches:
    """Drawn from the toy's bank."""
    return Batches(toy_bank(denoiser, embeddings), PROFILE, settings)


def training(
    adapter: Adapter, settings: EraseSettings, denoiser: ToyDenoiser, lr: float = LR, **hooks: Any
) -> TrainingState:
    """A whole run."""
    state = new_state(adapter, lr)
    distill(denoiser, batches(denoiser, settings), Meter(denoiser, toy_held_out(denoiser)), state, settings, **hooks)
    return state


def by_hand(denoiser: ToyDenoiser, adapter: Adapter) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Forget and retain loss of the step that ``denoiser`` remembers, and the gradients on (down, up) of each layer."""
    (student_call,) = denoiser.calls
    base = {name: layer.weight for name, layer in denoiser.target_layers().items()}
    asked = torch.cat([EMBEDDINGS[[SURROGATE] * 4], student_call.embeds[4:]])
    teacher = student_call.noisy @ base["mix"].T + asked @ base["text"].T
    leaves: dict[str, tuple[Tensor, Tensor]] = {}
    changed = dict(base)
    for name, update in adapter.updates.items():
        assert isinstance(update, LowRankUpdate)
        down, up = (tensor.detach().clone().requires_grad_() for tensor in (update.down, update.up))
        mask = 1.0 if update.entries is None else update.entries
        leaves[name] = (down, up)
        changed[name] = base[name] + SETTINGS.lora_alpha / SETTINGS.rank * (up @ down) * mask
    student = student_call.noisy @ changed["mix"].T + student_call.embeds @ changed["text"].T
    forget, retain = (student - teacher).pow(2).chunk(2)
    total = SETTINGS.forget_weight * forget.mean() + SETTINGS.retain_weight * retain.mean()
    flat = torch.autograd.grad(total, [leaf for pair in leaves.values() for leaf in pair])
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return forget.mean().detach(), retain.mean().detach(), dict(zip(leaves, pairs, strict=True))


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [FULL, CHANNELS, WEIGHTS], ids=["full", "channel", "weight"])
def test_a_step_is_the_equation(masks: Masks) -> None:
    denoiser = ToyDenoiser()
    adapter = moving(denoiser, masks)
    forget, retain = training_step(denoiser, batches(denoiser), adapter, 5, SETTINGS, LR)
    expected_forget, expected_retain, gradients = by_hand(denoiser, adapter)
    assert (forget, retain) == pytest.approx((float(expected_forget), float(expected_retain)), rel=1e-5)
    for name, (down, up) in gradients.items():
        torch.testing.assert_close(adapter.updates[name].down.grad, down)
        torch.testing.assert_close(adapter.updates[name].up.grad, up)


def test_low_memory_gives_the_same_gradients() -> None:
    found = []
    for low_memory in (False, True):
        denoiser = ToyDenoiser(timed=True)
        adapter = moving(denoiser)
        settings = dataclasses.replace(SETTINGS, low_memory=low_memory)
        losses = training_step(denoiser, batches(denoiser, settings), adapter, 3, settings, LR)
        found.append((losses, [parameter.grad for parameter in adapter.parameters()]))
        assert len(denoiser.calls) == (2 if low_memory else 1)
    (joint_losses, joint), (split_losses, split) = found
    assert split_losses == pytest.approx(joint_losses, rel=1e-6)
    for one, two in zip(joint, split, strict=True):
        torch.testing.assert_close(one, two)


def test_the_loss_scale_of_half_precision_is_taken_out_again() -> None:
    found = []
    for dtype in (torch.float32, torch.float16):
        denoiser = ToyDenoiser()
        denoiser.dtype = dtype  # only the scale follows; the toy computes in float32
        adapter = moving(denoiser)
        training_step(denoiser, batches(denoiser), adapter, 3, SETTINGS, LR)
        found.append([parameter.grad for parameter in adapter.parameters()])
    for plain, scaled in zip(*found, strict=True):
        torch.testing.assert_close(plain, scaled)


def test_a_steps_chance_comes_from_seed_and_step_alone() -> None:
    def noisy(step: int, seed: int) -> Tensor:
        denoiser = ToyDenoiser()
        torch.manual_seed(step + seed)  # the global generator has no say
        settings = dataclasses.replace(SETTINGS, seed=seed)
        training_step(denoiser, batches(denoiser, settings), moving(denoiser), step, settings, LR)
        return denoiser.calls[0].noisy

    assert torch.equal(noisy(3, 0), noisy(3, 0))
    assert not torch.equal(noisy(3, 0), noisy(4, 0))
    assert not torch.equal(noisy(3, 0), noisy(3, 1))


def test_a_step_leaves_the_base_frozen_and_unhooked() -> None:
    denoiser = ToyDenoiser()
    training_step(denoiser, batches(denoiser), moving(denoiser), 0, SETTINGS, LR)
    for layer in denoiser.target_layers().values():
        assert layer.weight.grad is None
        assert not layer._forward_hooks


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_loss_that_is_not_finite_stops_with_the_facts(low_memory: bool) -> None:
    denoiser = ToyDenoiser()
    adapter = moving(denoiser)
    settings = dataclasses.replace(SETTINGS, low_memory=low_memory)
    with pytest.raises(TrainingError, match=r"step 7: forget loss nan.*lr .*rank 2, timesteps \[") as caught:
        training_step(denoiser, batches(denoiser, settings, EMBEDDINGS * torch.inf), adapter, 7, settings, LR)
    assert "lower --lr or use --dtype float32" in str(caught.value)
    assert not denoiser.weights.text._forward_hooks


# --- the loop --------------------------------------------------------------------------------------------------------


def test_training_overwrites_the_concept_and_spares_the_rest() -> None:
    denoiser = ToyDenoiser()
    before = Meter(denoiser, toy_held_out(denoiser)).measure()
    state = training(Adapter.initialise(denoiser, FULL, 2, 2.0, seed=0), SETTINGS, denoiser)
    after = Meter(denoiser, toy_held_out(denoiser)).measure(state.adapter)
    assert before.residual == pytest.approx(1.0)
    assert after.residual < 0.15
    assert state.step == len(state.losses) == 100
    assert state.losses[-1][0] < 0.2 * state.losses[0][0]


def test_training_does_not_touch_the_base() -> None:
    denoiser, untouched = ToyDenoiser(), ToyDenoiser()
    training(moving(denoiser), dataclasses.replace(SETTINGS, steps=5), denoiser)
    for name, tensor in untouched.weights.state_dict().items():
        assert torch.equal(denoiser.weights.state_dict()[name], tensor)


@pytest.mark.parametrize("masks", [CHANNELS, WEIGHTS], ids=["channel", "weight"])
def test_what_is_masked_stays_exactly_zero(masks: Masks) -> None:
    denoiser = ToyDenoiser()
    state = training(moving(denoiser, masks), dataclasses.replace(SETTINGS, steps=20), denoiser)
    for name, mask in masks.items():
        delta = state.adapter.updates[name].delta()
        assert (delta[~mask.dense()] == 0).all()
        assert (delta[mask.dense()] != 0).all()


def test_a_run_repeats_to_the_bit() -> None:
    runs = []
    for _ in range(2):
        denoiser = ToyDenoiser()
        state = training(moving(denoiser), dataclasses.replace(SETTINGS, steps=10), denoiser)
        runs.append((state.losses, [parameter.detach().tolist() for parameter in state.adapter.parameters()]))
    assert runs[0] == runs[1]


def test_measurements_come_when_asked_and_the_last_is_returned() -> None:
    denoiser, steps, measured = ToyDenoiser(), [], []
    settings = dataclasses.replace(SETTINGS, steps=10, measure_every=4)
    state = training(
        moving(denoiser), settings, denoiser,
        on_measure=lambda state: measured.append(state.history[-1]["step"]),
        on_step=lambda state: steps.append(state.step),
    )  # fmt: skip
    assert steps == list(range(1, 11))
    assert measured == [row["step"] for row in state.history] == [4, 8]


def test_a_run_that_does_not_help_stops_early() -> None:
    denoiser = ToyDenoiser()
    settings = dataclasses.replace(SETTINGS, measure_every=2, patience=3)
    state = training(moving(denoiser), settings, denoiser, lr=1e-9)
    assert state.stopped_early
    assert state.step == 8  # one measurement to compare with, then three without improvement


def test_a_run_that_measures_well_enough_stops() -> None:
    denoiser = ToyDenoiser()
    settings = dataclasses.replace(SETTINGS, measure_every=2, enough_residual=0.9, enough_drift=1.0)
    state = training(moving(denoiser), settings, denoiser)
    assert state.stopped_early
    assert state.history[-1]["residual"] <= 0.9
    assert all(row["residual"] > 0.9 for row in state.history[:-1])


@pytest.mark.parametrize(("residual", "drift", "is_so"), [(0.1, 0.02, True), (0.11, 0.0, False), (0.0, 0.03, False)])
def test_enough_is_both_residual_and_drift(residual: float, drift: float, is_so: bool) -> None:
    settings = EraseSettings(enough_residual=0.1, enough_drift=0.02)
    assert enough(Measurement({"Neon": residual}, {"Rust": 0.0, "Photo": 2 * drift}), settings) is is_so


def test_a_run_that_stopped_early_does_not_go_on() -> None:
    denoiser = ToyDenoiser()
    state = new_state(moving(denoiser), LR)
    state.stopped_early = True
    meter = Meter(denoiser, toy_held_out(denoiser))
    measured = distill(denoiser, batches(denoiser), meter, state, SETTINGS)
    assert state.step == 0
    assert measured == meter.measure(state.adapter)


# --- its parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("residuals", "stops"),
    [
        ([], False),
        ([1.0, 1.0, 1.0], False),
        ([1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.99, 0.99, 0.99], True),
        ([1.0, 0.99, 0.985, 0.97], False),
        ([1.0, 0.9, 0.9, 0.9], False),
        ([1.0, 0.9, 0.9, 0.9, 0.9], True),
        ([0.5, 1.0, 1.0, 0.4], False),
        ([0.5, 0.6, 0.7, 0.8], True),
        ([1.0, 0.8, 0.6, 0.4, 0.2, 0.1], False),
        ([0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_a_plateau_is_patience_measurements_without_improvement(residuals: list[float], stops: bool) -> None:
    settings = EraseSettings(patience=3, min_improvement=0.02)
    assert plateaued(residuals, settings) is stops


@given(st.integers(1, 2000), st.floats(1e-6, 1.0))
def test_the_rate_falls_from_its_peak_but_never_to_zero(steps: int, lr: float) -> None:
    rates = [learning_rate(step, lr, steps) for step in range(steps)]
    assert rates[0] == lr
    assert all(a > b for a, b in pairwise(rates))
    assert min(rates) > 0


def test_the_first_steps_of_a_long_run_have_the_rates_of_a_short_one() -> None:
    """What three steps of a trial say holds for twenty and for a thousand."""
    short, long = ([learning_rate(step, 1.0, steps) for step in range(3)] for steps in (20, 1000))
    assert short == pytest.approx(long, rel=0.03)


def test_the_rate_by_hand() -> None:
    assert [learning_rate(step, 0.8, 100) for step in (0, 25, 50)] == pytest.approx([0.8, 0.68284, 0.4], rel=1e-4)


def test_steps_that_make_a_start_worse_are_taken_back() -> None:
    """By what is measured; a beginning that the steps improved is forgotten."""
    denoiser = ToyDenoiser()
    meter = Meter(denoiser, toy_held_out(denoiser))
    good = training(Adapter.initialise(denoiser, FULL, 2, 2.0, seed=0), SETTINGS, denoiser).adapter
    settings = dataclasses.replace(SETTINGS, steps=5)
    for lr, taken_back in ((3.0, 5), (1e-3, 0)):
        begin = good if taken_back else moving(denoiser)
        state = new_state(copy.deepcopy(begin), lr)
        state.best = Best(begin, 0, meter.measure(begin).cost(settings.drift_price))
        measured = distill(denoiser, batches(denoiser, settings), meter, state, settings)
        assert state.taken_back == taken_back
        assert measured == meter.measure(state.adapter)
        assert (measured == meter.measure(begin)) is bool(taken_back)


def test_a_run_that_gets_worse_again_ends_in_its_best_measured_state() -> None:
    """Rates that are too high ruin what the first steps brought; here it is what is measured that says so."""
    denoiser, residuals = ToyDenoiser(), [0.5, 0.3, 0.2, 0.6, 0.9, 0.8, 0.2]
    left = iter(residuals)

    class Scripted(Meter):
        def measure(self, *adapters: Adapter) -> Measurement:
            return Measurement({"c": next(left)}, {"k": 0.0})

    settings = dataclasses.replace(SETTINGS, steps=30, measure_every=5, patience=100)
    state, passed = new_state(moving(denoiser), LR), []

    def remembered(state: TrainingState) -> None:
        passed.append(copy.deepcopy(state.adapter))

    meter = Scripted(denoiser, toy_held_out(denoiser))
    measured = distill(denoiser, batches(denoiser, settings), meter, state, settings, remembered)
    assert (state.step, state.taken_back, measured.residual) == (30, 15, 0.2)
    assert all(map(torch.equal, state.adapter.parameters(), passed[2].parameters()))


def test_the_best_state_so_far_is_saved_and_restored(tmp_path: Path) -> None:
    denoiser = ToyDenoiser()
    state = new_state(moving(denoiser), LR)
    state.best = Best(copy.deepcopy(state.adapter), 2, 0.25)
    settings = dataclasses.replace(SETTINGS, steps=3)
    for _ in range(3):
        advance(denoiser, batches(denoiser, settings), state, settings)
    save_state(state, tmp_path / "state.safetensors")
    again = new_state(Adapter.initialise(denoiser, FULL, SETTINGS.rank, SETTINGS.lora_alpha, seed=5), 0.0)
    restore_state(again, tmp_path / "state.safetensors")
    assert again.best is not None
    assert (again.best.step, again.best.cost) == (2, 0.25)
    for mine, kept in ((again.adapter, state.adapter), (again.best.adapter, state.best.adapter)):
        assert all(map(torch.equal, mine.parameters(), kept.parameters()))
    assert not torch.equal(again.adapter.parameters()[0], again.best.adapter.parameters()[0])
