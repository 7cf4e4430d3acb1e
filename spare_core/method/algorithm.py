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
from spare_core.method.adversary import adversary_of
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.batches import Batches
from spare_core.method.distill import TrainingState, distill
from spare_core.method.gap import TimestepProfile, profile_timesteps
from spare_core.method.prior import Prior, build_prior, prior_moment
from spare_core.method.probes import draw_held_out
from spare_core.method.rate import begin_training
from spare_core.method.residual import Measurement, Meter, look_again
from spare_core.method.saliency import choose_masks
from spare_core.method.settings import EraseSettings
from spare_core.models.denoiser import Denoiser


class Prepared(NamedTuple):
    """What the frozen model says of a request: examples with the teacher's answers, the timestep profile, its text
    prior, and two sets of probes: one to choose by, one that chose nothing, to report."""

    denoiser: Denoiser
    erasures: Erasures
    bank: Bank
    profile: TimestepProfile
    prior: Prior
    choosing: Meter
    reporting: Meter


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
    """Sample probes and examples from the frozen model, profile when concept and surrogate differ, and see where its
    texts lie."""
    choosing, reporting = (
        Meter(denoiser, draw_held_out(denoiser, erasures, settings, purpose), tf32=purpose == "choose")
        for purpose in ("choose", "report")
    )
    bank = fill_bank(denoiser, erasures, settings, pictures)
    profile = profile_timesteps(bank, denoiser.num_timesteps, settings.bins)
    prior = build_prior(denoiser, settings.prior_texts, settings.resolution)
    return Prepared(denoiser, erasures, bank, profile, prior, choosing, reporting)


def overwrite(prepared: Prepared, settings: EraseSettings, masks: Masks | None = None) -> Erased:
    """Choose the weights that may move (or take ``masks``), solve for a start, find the rate, distill, measure."""
    denoiser, erasures, bank, profile, prior, choosing, reporting = prepared
    settings = settings.for_names(len(erasures.names))
    masks = masks or choose_masks(denoiser, bank, profile, settings)
    fresh = Adapter.initialise(denoiser, masks, settings.lora_rank, settings.lora_alpha, settings.seed)
    batches = Batches(bank, profile, settings, adversary_of(denoiser, bank, settings))
    texts = prior_moment(prior, denoiser, erasures, settings.resolution)
    state = begin_training(denoiser, batches, choosing, fresh, erasures, texts, settings)
    distill(denoiser, batches, choosing, state, settings)
    measured = look_again(denoiser, erasures, settings, state.adapter, reporting.measure(state.adapter))
    return Erased(state, measured, masks)
