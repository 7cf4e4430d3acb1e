"""One concept of one model, with all that its erasures share, to erase it again and again under other settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from spare_core.adapter import Adapter
from spare_core.bank import Bank, fill_bank
from spare_core.batches import Batches
from spare_core.denoiser import Denoiser
from spare_core.distill import TrainingState, distill
from spare_core.erasures import Erasures
from spare_core.masks import LayerMask
from spare_core.measures import Measurement, Meter, draw_held_out
from spare_core.opening import open_training
from spare_core.saliency import choose_masks
from spare_core.settings import EraseSettings
from spare_core.timesteps import TimestepProfile, profile_timesteps


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
        state = open_training(self.denoiser, batches, self.meter, adapter, self.erasures, settings)
        return Erased(state, distill(self.denoiser, batches, self.meter, state, settings), masks)
