"""Self-distillation: the one training loop.

With the adapter on, the prediction under the concept is pulled to what the frozen model predicts under the surrogate;
everything retained is held to the frozen model:

    w_f ||eps_D(x_t, c) - eps(x_t, s)||^2 + w_r ||eps_D(y_u, k) - eps(y_u, k)||^2

The frozen predictions are in the bank already (:mod:`spare_core.method.bank`).
The loop takes its starting adapter, its rate and its forget side as given (:mod:`spare_core.method.rate` finds
the first two). All chance of a step comes from a generator seeded by (seed, step), so a
resumed run repeats an uninterrupted one exactly.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.errors import TrainingError
from spare_core.method.batches import Batch, Batches
from spare_core.method.residual import Measurement, Meter
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import FP16_LOSS_SCALE, Denoiser

_BETAS = (0.8, 0.95)
"""Shorter memories than AdamW's usual ones: a run has some tens of steps, not thousands."""


@dataclass(frozen=True)
class Best:
    """An adapter as it was at a step, and what it cost there."""

    adapter: Adapter
    step: int
    cost: float


@dataclass
class TrainingState:
    """Where a run stands: enough to go on as if it had never stopped."""

    step: int
    adapter: Adapter
    optimizer: torch.optim.AdamW
    lr: float
    """The peak; 0 where no step was needed or none helped."""
    closed_form: dict[str, float | None] | None = None
    """What the adapter was solved with before the first step, and measured then."""
    trials: list[dict[str, float]] = field(default_factory=list)
    """What each rate that was tried came to."""
    best: Best | None = None
    """The best that was measured so far; None where nothing but an adapter that changes nothing was, and against an
    adversary."""
    taken_back: int = 0
    """How many of the last steps were taken back, because what was measured before them was better."""
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    stopped_early: bool = False
    seconds: float = 0.0
    """Spent on the steps so far, by all processes that worked on this run."""


def new_state(adapter: Adapter, lr: float) -> TrainingState:
    """Step 0, from ``adapter`` as it is."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=lr, betas=_BETAS, weight_decay=0.0, fused=True)
    return TrainingState(0, adapter, optimizer, lr)


def learning_rate(step: int, peak: float, steps: int) -> float:
    """Half a cosine from the peak on. There is no warm-up: a rate that is found by trials is the right one at once, and
    the trials of a long run see the same rates as those of a short one."""
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def distill(
    denoiser: Denoiser,
    batches: Batches,
    meter: Meter,
    state: TrainingState,
    settings: EraseSettings,
    on_measure: Callable[[TrainingState], None] = lambda state: None,
    on_step: Callable[[TrainingState], None] = lambda state: None,
) -> Measurement:
    """Train ``state.adapter`` in place until ``settings.steps``, or a measurement that is good enough, or a plateau of
    the measured residual; then go back to the best state that was measured. Returns what ``meter`` measures of it.
    Against an adversary all steps are done and the last state is the result: no probe sees what they are for.

    ``on_measure`` is called after every measurement, when ``state`` may be saved; ``on_step`` after every step.

    Raises:
        TrainingError: at the first loss that is not finite, with the step and the settings that led to it.
    """
    spent, started = state.seconds, time.perf_counter()
    while state.step < settings.steps and not state.stopped_early:
        advance(denoiser, batches, state, settings)
        state.seconds = round(spent + time.perf_counter() - started, 3)
        on_step(state)
        if state.step % settings.measure_every == 0 and state.step < settings.steps:
            measured = meter.measure(state.adapter)
            state.history.append({"step": state.step, "residual": measured.residual, "mean_drift": measured.mean_drift})
            if not settings.opposed:
                remember(state, measured, settings)
                residuals = [row["residual"] for row in state.history]
                state.stopped_early = enough(measured, settings) or plateaued(residuals, settings)
            on_measure(state)
    measured = meter.measure(state.adapter)
    if state.best is None or state.best.cost >= measured.cost(settings.drift_price):
        return measured
    state.adapter, state.taken_back = state.best.adapter, state.step - state.best.step
    return meter.measure(state.adapter)


def remember(state: TrainingState, measured: Measurement, settings: EraseSettings) -> None:
    """Keep a copy of the adapter as it is now, if nothing that was measured before costs less."""
    cost = measured.cost(settings.drift_price)
    if state.best is None or cost < state.best.cost:
        state.best = Best(copy.deepcopy(state.adapter), state.step, cost)


def advance(denoiser: Denoiser, batches: Batches, state: TrainingState, settings: EraseSettings) -> None:
    """One step of the schedule, in place."""
    rate = learning_rate(state.step, state.lr, settings.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    losses = training_step(denoiser, batches, state.adapter, state.step, settings, rate)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.adapter.project()
    state.losses.append(list(losses))
    state.step += 1


def enough(measured: Measurement, settings: EraseSettings) -> bool:
    """Whether what is measured needs no further step."""
    return measured.residual <= settings.enough_residual and measured.deciding_drift <= settings.enough_drift


def plateaued(residuals: list[float], settings: EraseSettings) -> bool:
    """Whether the last ``patience`` measurements brought no fall of ``min_improvement`` below the best before them."""
    if len(residuals) <= settings.patience:
        return False
    best_before = min(residuals[: -settings.patience])
    return min(residuals[-settings.patience :]) > best_before * (1.0 - settings.min_improvement)


def training_step(
    denoiser: Denoiser, batches: Batches, adapter: Adapter, step: int, settings: EraseSettings, rate: float
) -> tuple[float, float]:
    """Gradients of one step on the adapter's parameters; returns the forget and the retain loss. ``rate`` is only said
    in an error.

    One batch of both sides, or with ``low_memory`` one backward pass a side: equal to rounding, half the activations,
    slower (benchmarks/backward.py).
    """
    weights = torch.tensor([settings.forget_weight, settings.retain_weight], device=denoiser.device)
    scale = FP16_LOSS_SCALE if denoiser.dtype is torch.float16 else 1.0
    groups = [[0], [1]] if settings.low_memory else [[0, 1]]
    losses = torch.zeros(2, device=denoiser.device)
    with adapter.attached(denoiser):
        both = batches.draw(step)
        for group in groups:
            joined = Batch.cat([both[i] for i in group]).to(denoiser.device)
            found = denoiser.predict(joined.noisy, joined.timesteps, joined.conditioning)
            taught = joined.taught(found.detach())
            parts = zip(found.chunk(len(group)), taught.chunk(len(group)), strict=True)
            loss = torch.stack([F.mse_loss(prediction, target) for prediction, target in parts])
            (scale * (weights[group] * loss).sum()).backward()
            losses[group] = loss.detach()
    gradients = [parameter.grad for parameter in adapter.parameters() if parameter.grad is not None]
    if scale != 1.0:
        torch._foreach_div_(gradients, scale)
    values = losses.tolist()
    if not all(map(math.isfinite, values)) or not torch.stack(torch._foreach_norm(gradients)).isfinite().all():
        timesteps = torch.cat([batch.timesteps for batch in both])
        raise TrainingError(_not_finite(values, step, timesteps, denoiser, settings, rate))
    return values[0], values[1]


def _not_finite(
    values: list[float], step: int, timesteps: Tensor, denoiser: Denoiser, settings: EraseSettings, rate: float
) -> str:
    facts: dict[str, Any] = {
        "forget loss": values[0],
        "retain loss": values[1],
        "lr": f"{rate:.2e}",
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "rank": settings.lora_rank,
        "timesteps": timesteps.tolist(),
    }
    listed = ", ".join(f"{name} {value}" for name, value in facts.items())
    return f"training stopped at step {step}: {listed}; lower --lr or use --dtype float32"
