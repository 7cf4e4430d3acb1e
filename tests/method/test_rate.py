"""The best of the trials is taken, wherever the best rate lies, and is the beginning of the run at that rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import TrainingError
from spare_core.method import rate
from spare_core.method.distill import TrainingState, distill, new_state
from spare_core.method.rate import begin_from, begin_training, find_rate
from spare_core.method.residual import UNTOUCHED, Measurement, Meter
from spare_core.method.settings import EraseSettings
from spare_core.method.start import Start
from tests.method.test_distill import SETTINGS, batches, moving
from tests.support.toy import ToyDenoiser, toy_held_out


def found(settings: EraseSettings, denoiser: ToyDenoiser, adapter: Adapter) -> TrainingState:
    return find_rate(denoiser, batches(denoiser, settings), Meter(denoiser, toy_held_out(denoiser)), adapter, settings)


def test_a_run_from_the_best_trial_is_the_run_at_its_rate() -> None:
    settings = dataclasses.replace(SETTINGS, steps=12)
    denoiser = ToyDenoiser()
    automatic = found(settings, denoiser, moving(denoiser))
    given = new_state(moving(denoiser), automatic.lr)
    assert automatic.step > 0
    meter = Meter(denoiser, toy_held_out(denoiser))
    for state in (automatic, given):
        distill(denoiser, batches(denoiser, settings), meter, state, settings)
    assert automatic.losses == given.losses
    for one, other in zip(automatic.adapter.parameters(), given.adapter.parameters(), strict=True):
        assert torch.equal(one, other)


def test_trials_leave_their_start_as_it_was() -> None:
    denoiser = ToyDenoiser()
    adapter = moving(denoiser)
    before = [parameter.clone() for parameter in adapter.parameters()]
    found(SETTINGS, denoiser, adapter)
    assert all(torch.equal(one, other) for one, other in zip(adapter.parameters(), before, strict=True))


def test_the_rate_taken_is_the_best_of_those_tried_and_lies_between_worse_ones() -> None:
    state = found(SETTINGS, denoiser := ToyDenoiser(), moving(denoiser))
    costs = {trial["lr"]: trial["cost"] for trial in state.trials}
    assert costs[state.lr] == min(costs.values())
    assert len(costs) >= 3
    assert min(costs) < state.lr
    ratios = [high / low for low, high in zip(sorted(costs), sorted(costs)[1:], strict=False)]
    assert ratios == pytest.approx([4.0] * len(ratios))


@pytest.mark.parametrize("wanted", [4e-3 / 64, 4e-3 / 4, 4e-3, 4e-3 * 4, 4e-3 * 16])
def test_the_climb_reaches_a_best_rate_on_either_side(monkeypatch: pytest.MonkeyPatch, wanted: float) -> None:
    """Where the cost is a valley over log(lr), wherever its ground is."""
    denoiser = ToyDenoiser()
    meter, seen = costing(monkeypatch, denoiser, lambda lr: abs(math.log(lr / wanted)))
    state = find_rate(denoiser, batches(denoiser), meter, moving(denoiser), SETTINGS)
    assert state.lr == pytest.approx(wanted)
    assert len(seen) == len(set(seen)) <= 6


@pytest.mark.parametrize(("at_start", "stopped"), [(0.5, True), (2.0, False)])
def test_no_step_is_made_where_no_rate_beats_the_start(
    monkeypatch: pytest.MonkeyPatch, at_start: float, stopped: bool
) -> None:
    """Lower rates come ever closer to it from above; the climb does not follow them to the end."""
    denoiser = ToyDenoiser()
    adapter = moving(denoiser)
    before = [parameter.clone() for parameter in adapter.parameters()]
    meter, _ = costing(monkeypatch, denoiser, lambda lr: 0.5 + 100 * lr)
    state = find_rate(denoiser, batches(denoiser), meter, adapter, SETTINGS, at_start)
    assert len(state.trials) == 5, "4e-3 to 1.6e-5, where a quarter of the rate brings less than a hundredth"
    assert state.stopped_early is stopped
    if stopped:
        assert (state.step, state.lr) == (0, 0.0)
        for one, other in zip(state.adapter.parameters(), before, strict=True):
            assert torch.equal(one, other)
    else:
        assert state.step > 0 and state.lr == pytest.approx(4e-3 / 256)


@pytest.mark.parametrize(("names", "changes", "tried"), [
    (2, {}, True), (3, {}, False), (3, {"steps": 6}, True), (3, {"batch_size": 12}, True), (3, {"lr": 1e-3}, False),
])  # fmt: skip
def test_no_rate_is_tried_on_a_solution_of_more_names_than_steps_can_see(
    monkeypatch: pytest.MonkeyPatch, names: int, changes: dict[str, Any], tried: bool
) -> None:
    """Four rows a name; a rate that is given is used whatever it is."""
    denoiser = ToyDenoiser()
    settings = dataclasses.replace(SETTINGS, **{"lr": "auto", "steps": 4, "batch_size": 2, **changes})
    start = Start(moving(denoiser), 1.0, Measurement(dict.fromkeys("abc"[:names], 0.5), {"k": 0.1}))
    looked: list[bool] = []

    def finding(*_: object) -> TrainingState:
        looked.append(True)
        return new_state(start.adapter, 1e-3)

    monkeypatch.setattr(rate, "find_rate", finding)
    meter = Meter(denoiser, toy_held_out(denoiser))
    state = begin_from(denoiser, batches(denoiser, settings), meter, start, settings)
    assert bool(looked) is tried
    assert state.stopped_early is (not tried and settings.lr == "auto")


@pytest.mark.parametrize(
    ("ridge", "measured", "to_beat"), [(None, UNTOUCHED, math.inf), (10.0, Measurement({"a": 0.5}, {"c": 0.01}), 0.54)]
)
def test_only_a_solution_is_worth_stopping_at(
    monkeypatch: pytest.MonkeyPatch, ridge: float | None, measured: Measurement, to_beat: float
) -> None:
    """An adapter that changes nothing has a cost of 1, but has to learn."""
    denoiser = ToyDenoiser()
    adapter, told = moving(denoiser), []

    def finding(*arguments: object) -> TrainingState:
        told.append(arguments[-1])
        return new_state(adapter, 1e-3)

    monkeypatch.setattr(rate, "best_start", lambda *arguments: Start(adapter, ridge, measured))
    monkeypatch.setattr(rate, "find_rate", finding)
    settings = dataclasses.replace(SETTINGS, lr="auto", closed_form=True)
    erasures = Erasures(Erasure("a", "b", "object", ("c",), "{concept}", ()))
    meter = Meter(denoiser, toy_held_out(denoiser))
    begin_training(denoiser, batches(denoiser), meter, adapter, erasures, torch.zeros(2, 2), settings)
    assert told == [pytest.approx(to_beat)]


def costing(
    monkeypatch: pytest.MonkeyPatch, denoiser: ToyDenoiser, cost: Callable[[float], float]
) -> tuple[Meter, list[float]]:
    """A meter to which a trial costs what its rate says, and the rates that are tried, as they come."""
    seen: list[float] = []

    def starting(adapter: Adapter, lr: float) -> TrainingState:
        seen.append(lr)
        return new_state(adapter, lr)

    class Costing(Meter):
        def measure(self, *adapters: Adapter) -> object:
            return _Cost(cost(seen[-1]))

    monkeypatch.setattr(rate, "new_state", starting)
    return Costing(denoiser, toy_held_out(denoiser)), seen


class _Cost:
    def __init__(self, value: float) -> None:
        self.value = value

    def cost(self, drift_weight: float) -> float:
        return self.value


def test_a_rate_that_stops_being_finite_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    step = rate.advance

    def fragile(denoiser: object, batches: object, state: TrainingState, settings: EraseSettings) -> None:
        if state.lr > 2e-3:
            raise TrainingError("training stopped")
        step(denoiser, batches, state, settings)  # type: ignore[arg-type]

    monkeypatch.setattr(rate, "advance", fragile)
    state = found(SETTINGS, denoiser := ToyDenoiser(), moving(denoiser))
    assert state.lr <= 2e-3
    assert all(trial["lr"] <= 2e-3 for trial in state.trials)


def test_where_no_rate_trains_the_error_is_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise TrainingError("training stopped at step 0")

    monkeypatch.setattr(rate, "advance", broken)
    with pytest.raises(TrainingError, match="training stopped at step 0"):
        found(SETTINGS, denoiser := ToyDenoiser(), moving(denoiser))
