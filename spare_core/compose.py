"""One adapter that suppresses all that its parts suppress: a deployed model has to forget everything at once.

The parts only say what is erased and where training may start from: the teacher is the base model, for every concept
anew, and what one part keeps is held unless another erases it. Three ways are tried and measured on the same probes:
the parts' sum cut to the rank (*compressed*), a short training from there (*refined*), and one from a closed form for
all concepts at once (*joint*). The exact sum (*concatenated*), of the ranks' sum, is measured beside them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spare_core.adapter import Adapter, LowRankUpdate, check_rank
from spare_core.artifact import MANIFEST, check_base, load_adapter, save_adapter
from spare_core.bank import fill_bank
from spare_core.batches import Batches
from spare_core.bundle import compressed, concatenated
from spare_core.closed_form import Start
from spare_core.concept import Erasure
from spare_core.denoiser import UNetDenoiser, choose_device, load_denoiser
from spare_core.distill import TrainingState, distill
from spare_core.erasures import Erasures
from spare_core.errors import OutputError, SettingsError
from spare_core.masks import LayerMask, Masks, describe_masks
from spare_core.measures import Measurement, Meter, draw_held_out
from spare_core.model_files import find_model
from spare_core.opening import open_from, open_training
from spare_core.prompts import all_prompts
from spare_core.request import Progress
from spare_core.saliency import choose_masks
from spare_core.settings import EraseSettings
from spare_core.stages import make_repeatable, peak_memory
from spare_core.timesteps import TimestepProfile, TimestepSampler, profile_timesteps


class Candidate(NamedTuple):
    """One way to put the parts together, what it measures, and what is to be said of it."""

    name: str
    adapter: Adapter
    measured: Measurement
    facts: dict[str, Any]

    @property
    def rank(self) -> int:
        """Of every layer alike."""
        ranks = {len(update.down) for update in self.adapter.updates.values() if isinstance(update, LowRankUpdate)}
        (rank,) = ranks
        return rank

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"rank": self.rank, **self.facts, **self.measured.as_dict()}


def compose(
    model: str,
    folders: Sequence[Path],
    output: Path,
    settings: EraseSettings,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Write the best of the ways to ``output``; returns its manifest. ``settings.rank`` is the bundle's.

    Raises:
        InputError: before any work: a damaged adapter, one of another base, a concept that is erased twice, surrogates
            in a circle, a rank that no layer has, an output folder that is not empty.
        TrainingError: if a loss stops being finite.
    """
    choose_device(settings.device)
    if settings.mask == "weight":
        raise SettingsError(["mask is 'weight', of which no low-rank adapter is made; a bundle is one: give another"])
    _check_output(output)
    parts = [load_adapter(folder) for folder in folders]
    exact = concatenated([part.adapter for part in parts])
    erasures = Erasures.of(*(part.manifest for part in parts))
    digest = find_model(model).digest()
    for part in parts:
        check_base(part, digest, model)
    make_repeatable()
    denoiser = load_denoiser(model, settings.device, settings.dtype, settings.low_memory)
    check_rank(denoiser.target_layers(), settings.rank)
    denoiser.check_prompts(all_prompts(erasures))
    started = time.perf_counter()
    work = Composition.prepare(denoiser, erasures, settings, progress)
    prepared = round(time.perf_counter() - started, 3)
    candidates = [*work.of_parts(exact.to(denoiser.device)), work.joint()]
    chosen = best([one for one in candidates if one.rank == settings.rank], settings)
    sampler = TimestepSampler.from_profile(work.profile, settings)
    manifest = {
        "requests": [
            {**Erasure.from_dict(request).as_dict(), "adapter": request.get("adapter", part.sha256)}
            for part in parts
            for request in part.manifest.get("requests", [part.manifest])
        ],
        "settings": settings.as_dict(),
        "seeds": {"run": settings.seed},
        "mask": {"kind": settings.mask, **describe_masks(work.masks)},
        "timestep_profile": {**work.profile.as_dict(), "probabilities": sampler.probabilities.tolist()},
        "composition": {"chosen": chosen.name, "candidates": {one.name: one.as_dict() for one in candidates}},
        **chosen.measured.as_dict(),
        "seconds": {"prepare": prepared, **{one.name: one.facts["seconds"] for one in candidates}},
        "peak_memory_bytes": peak_memory(denoiser.device),
        "base": {"digest": digest, **denoiser.settings()},
    }
    return save_adapter(output, chosen.adapter, denoiser.lora_prefix, manifest)


def best(candidates: Sequence[Candidate], settings: EraseSettings) -> Candidate:
    """The one whose worst residual is least; where that is low enough, the one that drifts least."""
    return min(
        candidates,
        key=lambda one: (max(settings.enough_residual, one.measured.worst_residual), one.measured.mean_drift),
    )


@dataclasses.dataclass(frozen=True)
class Composition:
    """What every way is measured and trained on."""

    denoiser: UNetDenoiser
    erasures: Erasures
    settings: EraseSettings
    meter: Meter
    batches: Batches
    profile: TimestepProfile
    masks: Masks
    progress: Progress

    @classmethod
    def prepare(
        cls, denoiser: UNetDenoiser, erasures: Erasures, settings: EraseSettings, progress: Progress
    ) -> Composition:
        """Sample examples and probes."""
        progress("prepare", 0, 1)
        bank = fill_bank(denoiser, erasures, settings)
        meter = Meter(denoiser, draw_held_out(denoiser, erasures, settings))
        profile = profile_timesteps(bank, denoiser.num_timesteps, settings.bins)
        masks = choose_masks(denoiser, bank, profile, settings)
        progress("prepare", 1, 1)
        return cls(denoiser, erasures, settings, meter, Batches(bank, profile, settings), profile, masks, progress)

    def of_parts(self, exact: Adapter) -> list[Candidate]:
        """The ``exact`` sum as it is, cut to the rank, and trained on from there."""
        found = [self._timed("concatenated", lambda: (exact, self.meter.measure(exact), {}))]
        cut = compressed(exact, self.settings.rank)
        errors = {"error": cut.error, "worst_error": cut.worst}
        found.append(self._timed("compressed", lambda: (cut.adapter, self.meter.measure(cut.adapter), errors)))

        def refine() -> _Made:
            adapter = freed_adapter(cut.adapter, self.masks, self.settings.seed)
            start = Start(adapter, None, Meter(self.denoiser, self.meter.held_out.thinned()).measure(adapter))
            return self._trained(open_from(self.denoiser, self.batches, self.meter, start, self.settings))

        return [*found, self._timed("refined", refine)]

    def joint(self) -> Candidate:
        """From nothing."""

        def solve() -> _Made:
            settings = self.settings
            fresh = Adapter.initialise(self.denoiser, self.masks, settings.rank, settings.alpha, settings.seed)
            opened = open_training(self.denoiser, self.batches, self.meter, fresh, self.erasures, settings)
            return self._trained(opened)

        return self._timed("joint", solve)

    def _trained(self, state: TrainingState) -> _Made:
        measured = distill(self.denoiser, self.batches, self.meter, state, self.settings)
        return state.adapter, measured, {"steps": state.step, "lr": state.lr, "closed_form": state.closed_form}

    def _timed(self, name: str, make: Callable[[], _Made]) -> Candidate:
        self.progress(name, 0, 1)
        started = time.perf_counter()
        adapter, measured, facts = make()
        self.progress(name, 1, 1)
        return Candidate(name, adapter, measured, {**facts, "seconds": round(time.perf_counter() - started, 3)})


_Made = tuple[Adapter, Measurement, dict[str, Any]]


def freed_adapter(adapter: Adapter, masks: Masks, seed: int) -> Adapter:
    """The same change, which training may carry on to all that ``masks`` let move. A direction of the rank that is not
    used gets an A to begin with, as in a fresh adapter: where A and B are zero nothing is learnt."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 7)
    updates = {}
    for name, update in adapter.updates.items():
        assert isinstance(update, LowRankUpdate)
        down, up, mask = update.down.detach().cpu(), update.up.detach().cpu(), masks[name]
        rows, columns = mask.rows | up.ne(0).any(dim=1), mask.columns | down.ne(0).any(dim=0)
        fresh = torch.randn(down.shape, generator=generator) / down.shape[1] ** 0.5
        down = torch.where(down.ne(0).any(dim=1, keepdim=True), down, fresh)
        freed = LowRankUpdate(down, up, update.scale, LayerMask(rows, columns))
        updates[name] = freed.to(update.down.device)
    return Adapter(updates)


def _check_output(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = f"holds {MANIFEST}" if (output / MANIFEST).is_file() else "is there already"
        raise OutputError(f"{output} {what}; give a new or empty folder for --output")
