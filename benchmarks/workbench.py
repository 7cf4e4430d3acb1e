"""One concept of one model, with all that its erasures share, to erase it again and again under other settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from spare_core.adapters.layer_mask import LayerMask
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


class Erased(NamedTuple):
    """An erasure's end, what it measures, and what was allowed to move."""

    state: TrainingState
    measured: Measurement
    masks: dict[str, LayerMask]


@dataclass(frozen=True)
class Workbench:
    """Examples, timestep profile and probes."""

    denoiser: Denoiser
    erasures: Erasures
    bank: Bank
    profile: TimestepProfile
    meter: Meter

    @classmethod
    def prepare(cls, denoiser: Denoiser, erasures: Erasures, settings: EraseSettings) -> Workbench:
        """Sample what ``settings`` say of examples."""
        bank = fill_bank(denoiser, erasures, settings)
        profile = profile_timesteps(bank, denoiser.num_timesteps, settings.bins)
        return cls(denoiser, erasures, bank, profile, Meter(denoiser, draw_held_out(denoiser, erasures, settings)))

    def erase(self, settings: EraseSettings, masks: dict[str, LayerMask] | None = None) -> Erased:
        """Erase under ``settings``, on the examples that are there; within ``masks``, if they are known already."""
        masks = masks or choose_masks(self.denoiser, self.bank, self.profile, settings)
        adapter = Adapter.initialise(self.denoiser, masks, settings.rank, settings.alpha, settings.seed)
        batches = Batches(self.bank, self.profile, settings)
        state = begin_training(self.denoiser, batches, self.meter, adapter, self.erasures, settings)
        return Erased(state, distill(self.denoiser, batches, self.meter, state, settings), masks)
