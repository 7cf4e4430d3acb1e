"""The stages of an erasure. Each reads its inputs from folders and writes its result to a folder of its own.

::

    prepare ──> timesteps ──> saliency ──> distill
    examples    profile       masks        adapter directory

``spare erase`` runs them in one process (:mod:`spare_core.runs.erase`), a pipeline each in its own.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from spare_core.adapters.directory import save_adapter
from spare_core.adapters.layer_mask import Masks
from spare_core.adapters.low_rank import Adapter, check_rank
from spare_core.concepts.prompts import Purpose, all_prompts
from spare_core.errors import ModelError, TrainingError
from spare_core.files.pictures import load_images
from spare_core.method.adversary import adversary_of
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.batches import Batches
from spare_core.method.distill import TrainingState, distill, new_state
from spare_core.method.gap import TimestepProfile, TimestepSampler, profile_timesteps
from spare_core.method.masks import describe_masks
from spare_core.method.prior import prior_moment
from spare_core.method.probes import draw_held_out
from spare_core.method.rate import begin_training
from spare_core.method.residual import Measurement, Meter, look_again
from spare_core.method.saliency import choose_masks
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.prior import base_prior
from spare_core.runs.progress import OnProgress, no_progress
from spare_core.runs.request import Request
from spare_core.runs.results import (
    load_bank,
    load_masks,
    load_probes,
    load_profile,
    restore_state,
    save_bank,
    save_masks,
    save_probes,
    save_profile,
    save_state,
)
from spare_core.runs.stage_files import (
    BANK,
    CHOOSING,
    MASKS,
    PROFILE,
    REPORTING,
    STATE,
    read_stage,
    write_stage,
)

_LEFT: Final = 0.05
"""Share of the names of a list that may be left."""
_PROBES: Final[dict[Purpose, str]] = {"choose": CHOOSING, "report": REPORTING}

ERASING = ("prepare", "timesteps", "saliency", "distill")


@dataclass(frozen=True)
class Work:
    """What every stage needs: the request, its base model in memory, and whom to tell of progress."""

    request: Request
    denoiser: UNetDenoiser
    progress: OnProgress = no_progress

    @contextmanager
    def stage(self, name: str, output: Path, facts: dict[str, Any]) -> Iterator[None]:
        """Time the body, and mark ``output`` as finished with ``facts`` after it."""
        self.progress(name, 0, 1)
        started = time.perf_counter()
        yield
        spent = {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory_bytes": peak_memory(self.denoiser.device),
        }
        write_stage(output, name, self.request, {**spent, **facts})
        self.progress(name, 1, 1)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most memory this process has used so far, in bytes: of the host, and of a CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak


def open_work(request: Request, progress: OnProgress = no_progress) -> Work:
    """Load the base model of a request, and check against it what only a model can say.

    Raises:
        ModelError: if it cannot be loaded, or is no longer the one that was asked for.
        ConceptError: if a prompt is too long for it.
        SettingsError: if the rank is more than its smallest layer has.
    """
    progress("load", 0, 1)
    work = work_on(request, load_base(request.model, request.base, request.settings), progress)
    progress("load", 1, 1)
    return work


def load_base(model: str, base: str, settings: EraseSettings) -> UNetDenoiser:
    """Load the base model of that digest.

    Raises:
        ModelError: if it cannot be loaded, or is no longer that one.
    """
    make_repeatable()
    denoiser = load_denoiser(model, settings.device, settings.dtype, settings.low_memory)
    digest = denoiser.files.digest()
    if digest != base:
        raise ModelError(
            f"{model!r} is the base model {digest[:12]}… now, but {base[:12]}… was asked for; "
            "it was changed or replaced meanwhile"
        )
    return denoiser


def work_on(
    request: Request, denoiser: UNetDenoiser, progress: OnProgress = no_progress
) -> Work:  # fmt: skip
    """Check a request against its base model, which is loaded.

    Raises:
        ConceptError: if a prompt is too long for it.
        SettingsError: if the rank is more than its smallest layer has.
    """
    denoiser.check_prompts(all_prompts(request.erasures))
    check_rank(denoiser.target_layers(), request.settings.lora_rank)
    return Work(request, denoiser, progress)


def write_examples(work: Work, output: Path) -> None:
    """Sample the trajectories of both sides, to train on and held out.

    Raises:
        InputError: if concept and surrogate are the same to the model.
    """
    facts: dict[str, Any] = {}
    with work.stage("prepare", output, facts):
        request = work.request
        probes = {}
        for purpose, file in _PROBES.items():
            probes[purpose] = draw_held_out(work.denoiser, request.erasures, request.settings, purpose)
            save_probes(probes[purpose], output / file)
        folder = request.local_images()
        side = request.settings.resolution or work.denoiser.resolution
        pictures = None if folder is None else load_images(folder, side)
        bank = fill_bank(work.denoiser, request.erasures, request.settings, pictures)
        save_bank(bank, output / BANK)
        facts["prompts"] = len(bank.prompts)
        facts |= {"forget": len(bank.forget.timesteps), "retain": len(bank.retain.timesteps)}
        for purpose, probed in probes.items():
            facts[f"forget_{purpose}"], facts[f"retain_{purpose}"] = len(probed.forget.unit), len(probed.retain.unit)


def write_profile(work: Work, examples: Path, output: Path) -> None:
    """Profile when in the denoising concept and surrogate differ."""
    facts: dict[str, Any] = {}
    with work.stage("timesteps", output, facts):
        bank = _bank(work, examples)
        profile = profile_timesteps(bank, work.denoiser.num_timesteps, work.request.settings.bins)
        save_profile(profile, output / PROFILE)
        facts["probabilities"] = TimestepSampler.from_profile(profile, work.request.settings).probabilities.tolist()


def write_masks(work: Work, examples: Path, profile: Path, output: Path) -> None:
    """Score the weights and choose those that may move."""
    facts: dict[str, Any] = {}
    with work.stage("saliency", output, facts):
        masks = choose_masks(work.denoiser, _bank(work, examples), _profile(work, profile), work.request.settings)
        save_masks(masks, output / MASKS)
        facts["mask"] = {"kind": work.request.settings.mask, **describe_masks(masks)}


class Inputs(NamedTuple):
    """What a training works with."""

    batches: Batches
    choosing: Meter
    profile: TimestepProfile
    masks: Masks


def read_inputs(work: Work, examples: Path, profile: Path, masks: Path) -> Inputs:
    """From the folders of the stages before.

    Raises:
        StageError: if one of them is not finished, or another request's.
    """
    read_stage(masks, "saliency", work.request)
    profiled = _profile(work, profile)
    bank, settings = _bank(work, examples), work.request.settings
    batches = Batches(bank, profiled, settings, adversary_of(work.denoiser, bank, settings))
    return Inputs(batches, read_meter(work, examples, "choose"), profiled, load_masks(masks / MASKS))


def read_meter(work: Work, examples: Path, purpose: Purpose) -> Meter:
    """What measures on the probes of a purpose."""
    held_out = load_probes(examples / _PROBES[purpose], work.denoiser.device)
    return Meter(work.denoiser, held_out, tf32=purpose == "choose")


def write_adapter(
    work: Work,
    examples: Path,
    profile: Path,
    masks: Path,
    output: Path,
    state_folder: Path | None = None,
    on_step: Callable[[TrainingState], None] = lambda state: None,
) -> dict[str, Any]:
    """Train the adapter and write its directory; returns its ``spare.json``.

    With ``state_folder``, the state of the training is saved there after the trials and at each measurement, and
    resumed from.
    """
    request, settings, denoiser = work.request, work.request.settings, work.denoiser
    inputs = {"prepare": examples, "timesteps": profile, "saliency": masks}
    before = {name: read_stage(folder, name, request) for name, folder in inputs.items()}
    started = time.perf_counter()
    work.progress("distill", 0, settings.steps)
    batches, choosing, profiled, chosen = read_inputs(work, examples, profile, masks)
    fresh = Adapter.initialise(denoiser, chosen, settings.lora_rank, settings.lora_alpha, settings.seed)
    kept = None if state_folder is None else state_folder / STATE
    if kept is not None and kept.exists():
        state = new_state(fresh, 0.0)
        restore_state(state, kept)
        earlier = state.seconds
    else:
        prior = base_prior(denoiser, request.base, settings)
        texts = prior_moment(prior, denoiser, request.erasures, settings.resolution)
        state = begin_training(denoiser, batches, choosing, fresh, request.erasures, texts, settings)
        earlier = 0.0
        if kept is not None and state.step:
            save_state(state, kept)

    def stepped(state: TrainingState) -> None:
        work.progress("distill", state.step, settings.steps)
        on_step(state)

    def measured_at(state: TrainingState) -> None:
        if kept is not None:
            save_state(state, kept)

    distill(denoiser, batches, choosing, state, settings, on_measure=measured_at, on_step=stepped)
    measured = report_on(work, examples, state.adapter)
    check_erased(measured, settings)
    seconds = {name: facts["seconds"] for name, facts in before.items()}
    seconds["distill"] = round(earlier + time.perf_counter() - started, 3)
    memory = _most(*(facts["peak_memory_bytes"] for facts in before.values()), peak_memory(denoiser.device))
    last = state.losses[-1] if state.losses else (None, None)
    manifest = {
        **request.erasures.as_dict(),
        "left_out": request.erasures.left_out,
        "settings": settings.as_dict(),
        "seeds": {"run": settings.seed},
        "mask": before["saliency"]["mask"],
        "timestep_profile": {**profiled.as_dict(), "probabilities": before["timesteps"]["probabilities"]},
        "training": {
            "steps": state.step,
            "stopped_early": state.stopped_early,
            "taken_back": state.taken_back,
            "closed_form": state.closed_form,
            "lr": state.lr,
            "trials": state.trials,
            "history": state.history,
            "last_losses": dict(zip(("forget", "retain"), last, strict=True)),
        },
        **measured.as_dict(),
        "left": measured.left(settings.failed_above),
        "seconds": seconds,
        "peak_memory_bytes": memory,
        "base": {"digest": request.base, **denoiser.describe()},
        "request": request.identity(),
    }
    return save_adapter(output, state.adapter, denoiser.lora_prefix, manifest)


def report_on(work: Work, examples: Path, adapter: Adapter) -> Measurement:
    """What is reported of a result: on probes that chose nothing, of a name of a long list that seems to be left on
    further ones."""
    measured = read_meter(work, examples, "report").measure(adapter)
    return look_again(work.denoiser, work.request.erasures, work.request.settings, adapter, measured)


def check_erased(measured: Measurement, settings: EraseSettings) -> None:
    """Refuse a result that is none. In a long list one name in twenty may be left, and is told.

    Raises:
        TrainingError: naming the concepts that are left, or saying that everything else was ruined.
    """
    limit, drift, count = settings.failed_above, measured.deciding_drift, len(measured.residuals)
    left = measured.left(limit)
    if len(left) > _LEFT * count or measured.residual > limit:
        listed = ", ".join(f"{name!r} ({residual:.2f})" for name, residual in left.items())
        raise TrainingError(
            f"{len(left)} of {count} concepts are not erased, their residuals are above {limit:g}: {listed}; nothing "
            "was written. Erase fewer at once, with a larger rank or more steps, or name nearer surrogates"
        )
    if drift > limit:
        raise TrainingError(
            f"the erasure ruins what was to stay: mean drift {drift:.2f}, above {limit:g}; nothing was written. Give a "
            "lower --lr, or erase fewer at once"
        )


def _bank(work: Work, folder: Path) -> Bank:
    read_stage(folder, "prepare", work.request)
    return load_bank(folder / BANK, work.denoiser.device)


def _profile(work: Work, folder: Path) -> TimestepProfile:
    read_stage(folder, "timesteps", work.request)
    return load_profile(folder / PROFILE)


def _most(*peaks: dict[str, int]) -> dict[str, int]:
    return {name: max(peak.get(name, 0) for peak in peaks) for name in dict.fromkeys(n for peak in peaks for n in peak)}


def make_repeatable() -> None:
    """Same seed, same machine: same bytes, on a CPU. CUDA's fused attention has no deterministic backward pass and only
    warns; the rest there is made repeatable."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    # As use_deterministic_algorithms(True, warn_only=True), which imports a compiler on the way.
    torch.set_deterministic_debug_mode("warn")
    # That also fills every new tensor, a guard for code that reads before it writes; nothing here does.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
