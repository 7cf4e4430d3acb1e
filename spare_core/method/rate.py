"""Where training starts from and how fast it goes: both found by measuring, on held-out rows.

The start is the closed-form solution that measures best (:mod:`spare_core.method.start`). The learning rate is the best
of a few short trials from it. A trial is the first steps of a run at its rate, on that run's own schedule. So the best
trial is not thrown away: the run goes on from it, and is the run that ``lr`` set to that number gives.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from typing import Final

from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.errors import TrainingError
from spare_core.method.batches import Batches
from spare_core.method.distill import Best, TrainingState, advance, enough, new_state
from spare_core.method.residual import UNTOUCHED, Meter
from spare_core.method.search import climb
from spare_core.method.settings import EraseSettings
from spare_core.method.start import Start, best_start
from spare_core.models.denoiser import Denoiser

_FIRST: Final = 4e-3
_FACTOR: Final = 4.0
"""Ratio of neighbouring rates. The best one is broad: half or twice as much costs little (benchmarks/rates.py)."""
_RANGE: Final = (1e-6, 0.3)
_STEPS: Final = 3
_WORTH: Final = 0.99
"""Stop the search once a rate improves the best cost by less than 1 %; very low rates only reproduce the start's own
cost."""
_TIMES: Final = 4
"""How often all steps must come by each erased name before rates are tried on a solution. Lists of 50 and 100 names, by
which 20 steps come .8 to 1.6 times, cost 1 % less after them at best, for a seventh of their time."""


def begin_training(
    denoiser: Denoiser,
    batches: Batches,
    meter: Meter,
    fresh: Adapter,
    erasures: Erasures,
    prior: Tensor,
    settings: EraseSettings,
) -> TrainingState:
    """The state that a run of ``settings`` begins with; stopped early where the start is good enough as it is.
    ``meter`` is what is chosen by.

    Raises:
        TrainingError: if no rate trains.
    """
    started = time.perf_counter()
    if settings.closed_form:
        found = best_start(fresh, denoiser, erasures, prior, batches.bank, meter, settings)
        facts = {
            "ridge": found.ridge,
            "residual": found.measured.residual,
            "mean_drift": found.measured.mean_drift,
            "unnamed_drift": found.measured.unnamed_drift,
        }
    else:
        found, facts = Start(fresh, None, UNTOUCHED), None
    state = begin_from(denoiser, batches, meter, found, settings)
    state.closed_form = facts
    state.seconds = round(time.perf_counter() - started, 3)
    return state


def begin_from(
    denoiser: Denoiser, batches: Batches, meter: Meter, found: Start, settings: EraseSettings
) -> TrainingState:
    """The state that a run begins with from a known start.

    Raises:
        TrainingError: if no rate trains.
    """
    # An adapter that changes nothing yet must learn, whatever its first steps cost.
    cost = math.inf if found.measured == UNTOUCHED else found.measured.cost(settings.drift_price)
    if not settings.opposed and (enough(found.measured, settings) or _too_few_steps(found, settings)):
        state = new_state(found.adapter, 0.0)
        state.stopped_early = True
    elif settings.lr == "auto":
        state = find_rate(denoiser, batches, meter, found.adapter, settings, cost)
    else:
        state = new_state(copy.deepcopy(found.adapter), settings.lr)
    if found.measured != UNTOUCHED and not settings.opposed:
        state.best = Best(found.adapter, 0, cost)
    return state


def _too_few_steps(found: Start, settings: EraseSettings) -> bool:
    """Whether a solution is the result because so few steps cannot see enough of each name to improve on it."""
    rows = settings.steps * settings.batch_size
    return found.ridge is not None and settings.lr == "auto" and rows < _TIMES * len(found.measured.residuals)


def find_rate(
    denoiser: Denoiser,
    batches: Batches,
    meter: Meter,
    adapter: Adapter,
    settings: EraseSettings,
    at_start: float = math.inf,
) -> TrainingState:
    """The state of the best trial from ``adapter``, which is not changed. If no trial costs less than ``at_start``, the
    adapter's own cost, it is a state that is stopped before the first step.

    The search starts at a rate that suits a small model and goes to lower rates while they are better, else to higher
    ones. A rate at which training or measuring stops being finite loses.

    Raises:
        TrainingError: if no rate trains.
    """
    tried: dict[float, float] = {}
    best: TrainingState | None = None
    failure: TrainingError | None = None

    @functools.cache
    def cost_at(lr: float) -> float:
        nonlocal best, failure
        state = new_state(copy.deepcopy(adapter), lr)
        cost = math.inf
        try:
            for _ in range(min(_STEPS, settings.steps)):
                advance(denoiser, batches, state, settings)
            cost = meter.measure(state.adapter).cost(settings.drift_price)
        except TrainingError as error:
            failure = error
        best = state if cost < min(tried.values(), default=math.inf) else best
        tried[lr] = cost
        return cost

    climb(cost_at, _FIRST, (1 / _FACTOR, _FACTOR), _RANGE, _WORTH)
    if best is None:
        assert failure is not None
        raise failure
    if min(tried.values()) >= at_start:
        best = new_state(adapter, 0.0)
        best.stopped_early = True
    best.trials = [{"lr": lr, "cost": cost} for lr, cost in sorted(tried.items()) if math.isfinite(cost)]
    return best
