"""The algorithm from first to last, in memory; README.md beside this file has the equations.

::

    prepared = prepare(denoiser, erasures, settings)      # frozen model: examples, probes, when the concept is decided
    erased = overwrite(prepared, settings)                # where weights may move, start, rate, steps, measurement
    with erased.adapter.attached(denoiser):
        ...

A command or a pipeline does the same stage by stage, with files between the stages (:mod:`spare_core.runs.stages`);
benchmarks call this to erase again under other settings, on the same examples.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from spare_core.adapters.layer_mask import Masks
from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.batches import Batches
from spare_core.method.distill import TrainingState, distill
from spare_core.method.gap import TimestepProfile, profile_timesteps
from spare_core.method.probes import draw_held_out
from spare_core.method.rate import begin_training
from spare_core.method.residual import Measurement, Meter
from spare_core.method.saliency import choose_masks
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import Denoiser


class Prepared(NamedTuple):
    """What the frozen model says of a request: examples with the teacher's answers, the timestep profile, probes."""

    denoiser: Denoiser
    erasures: Erasures
    bank: Bank
    profile: TimestepProfile
    meter: Meter


class Erased(NamedTuple):
    """A finished erasure: the state it ended in, what it measures, and what was allowed to move."""

    state: TrainingState
    measured: Measurement
    masks: Masks

    @property
    def adapter(self) -> Adapter:
        """The result."""
        return self.state.adapter


def prepare(
    denoiser: Denoiser, erasures: Erasures, settings: EraseSettings, pictures: Tensor | None = None
) -> Prepared:
    """Sample probes and examples from the frozen model, and profile when concept and surrogate differ."""
    meter = Meter(denoiser, draw_held_out(denoiser, erasures, settings))
    bank = fill_bank(denoiser, erasures, settings, pictures)
    profile = profile_timesteps(bank, denoiser.num_timesteps, settings.bins)
    return Prepared(denoiser, erasures, bank, profile, meter)


def overwrite(prepared: Prepared, settings: EraseSettings, masks: Masks | None = None) -> Erased:
    """Choose the weights that may move (or take ``masks``), solve for a start, find the rate, distill, measure."""
    denoiser, erasures, bank, profile, meter = prepared
    masks = masks or choose_masks(denoiser, bank, profile, settings)
    fresh = Adapter.initialise(denoiser, masks, settings.rank, settings.alpha, settings.seed)
    batches = Batches(bank, profile, settings)
    state = begin_training(denoiser, batches, meter, fresh, erasures, settings)
    measured = distill(denoiser, batches, meter, state, settings)
    return Erased(state, measured, masks)
