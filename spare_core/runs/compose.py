"""One adapter that suppresses all that its parts suppress: a deployed model has to forget everything at once.

The parts only say what is erased and where training may start from: the teacher is the base model, for every concept
anew, and what one part keeps is held unless another erases it. Three ways are tried and measured on the same probes:
that of ``spare erase`` for all concepts at once (*joint*), the parts' sum cut to the rank (*compressed*), and a short
training from there (*refined*). The exact sum (*concatenated*), of the ranks' sum, is measured beside them.

A bundle grows by being a part of the next one. It shrinks by being made anew without a concept: there only *joint* is
left, since the parts hold what is to go.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from spare_core.adapters.algebra import compressed, concatenated
from spare_core.adapters.directory import StoredAdapter, check_base, load_adapter, save_adapter
from spare_core.adapters.layer_mask import LayerMask, Masks
from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.adapters.manifest import MANIFEST, read_manifest
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures, keeping
from spare_core.errors import ConceptError, SettingsError
from spare_core.method.distill import distill
from spare_core.method.probes import asked_once, draw_held_out
from spare_core.method.rate import begin_from
from spare_core.method.residual import Measurement, Meter
from spare_core.method.settings import EraseSettings
from spare_core.method.start import Start
from spare_core.models.device import choose_device
from spare_core.runs import stages
from spare_core.runs.erase import check_space, run_stages
from spare_core.runs.progress import OnProgress, no_progress
from spare_core.runs.request import build_request
from spare_core.runs.resume import Checkpoint, check_run_output
from spare_core.streams import stream

BACK_WITHIN: Final = 0.2
"""A withdrawn concept counts as back if its own prompts have moved no further from the base model, in units of its
distance to its surrogate."""
_JOINT: Final = "joint"


class Candidate(NamedTuple):
    """One way to put the parts together, what it measures, and what is to be said of it."""

    name: str
    adapter: Adapter
    measured: Measurement
    facts: dict[str, Any]

    @property
    def rank(self) -> int:
        """Rank of the update, the same in every layer."""
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
    progress: OnProgress = no_progress,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the best of the ways to ``output``; returns its manifest. ``settings.rank`` is the bundle's; concepts of
    the parts that are named in ``without`` are no longer erased.

    The same call again returns the finished result, or goes on where a killed run stopped.

    Raises:
        InputError: before any work: a damaged adapter, one of another base, a concept that is erased twice, surrogates
            in a circle, a rank that no layer or another bundle has, an output folder that holds something else.
        TrainingError: if a loss stops being finite.
    """
    choose_device(settings.device)
    if settings.mask == "weight":
        raise SettingsError(["mask is 'weight', of which no low-rank adapter is made; a bundle is one: give another"])
    parts = [load_adapter(folder) for folder in folders]
    exact = concatenated([part.adapter for part in parts])
    kept, withdrawn = _split(parts, without)
    erasures = Erasures(*map(Erasure.from_dict, kept), bundle=True)
    ranks = [part.manifest["settings"]["rank"] for part in parts if "requests" in part.manifest]
    request = build_request(model, erasures, with_rank(ranks, len(erasures.names), settings), None, progress)
    settings = request.settings
    for part in parts:
        check_base(part, request.base, model)
    identity = {
        **request.identity(),
        "adapters": [part.sha256 for part in parts],
        "without": [one.concept for one in withdrawn],
    }
    finished = check_run_output(output, identity)
    if finished is not None:
        return finished
    work = stages.open_work(request, progress)
    check_space(output, work.denoiser, settings)
    with Checkpoint(output, identity) as folder:
        candidates = ways(work, folder, None if withdrawn else exact)
        chosen = best([one for one in candidates if one.rank == settings.lora_rank], settings)
        measured = stages.report_on(work, folder / stages.ERASING[0], chosen.adapter)
        stages.check_erased(measured, settings)
        joint = read_manifest(folder / _JOINT)
        shared = ("settings", "seeds", "mask", "timestep_profile", "base")
        manifest = {
            "requests": kept,
            **{name: joint[name] for name in shared},
            "composition": {
                "chosen": chosen.name,
                "grown_from_rank": max(ranks) if ranks and settings.lora_rank > max(ranks) else None,
                "candidates": {one.name: one.as_dict() for one in candidates},
            },
            **measured.as_dict(),
            "left": measured.left(settings.failed_above),
            "withdrawn": _withdrawn(work, withdrawn, chosen.adapter),
            "seconds": {one.name: one.facts["seconds"] for one in candidates},
            "peak_memory_bytes": stages.peak_memory(work.denoiser.device),
            "request": identity,
        }
        return save_adapter(output, chosen.adapter, work.denoiser.lora_prefix, manifest)


def best(candidates: Sequence[Candidate], settings: EraseSettings) -> Candidate:
    """The one whose worst residual is least; where that is low enough, the one that drifts least. Of a list so long
    that each name is asked about once, the one that costs least: the worst of a hundred single answers is chance."""

    def worth(one: Candidate) -> tuple[float, float]:
        if asked_once(len(one.measured.residuals), settings):
            return one.measured.cost(settings.drift_price), 0.0
        return max(settings.enough_residual, one.measured.worst_residual), one.measured.mean_drift

    return min(candidates, key=worth)


def ways(work: stages.Work, folder: Path, exact: Adapter | None) -> list[Candidate]:
    """All that there are, of all ranks. Stages that were finished in ``folder`` before are not done again.

    ``exact`` is the parts' sum; None where it erases what is not to be erased.
    """
    settings, denoiser, joint = work.request.settings, work.denoiser, folder / _JOINT
    manifest = read_manifest(joint) if (joint / MANIFEST).is_file() else run_stages(work, folder, joint)
    training = {name: manifest["training"][name] for name in ("steps", "lr", "closed_form", "taken_back")}
    training["seconds"] = round(sum(manifest["seconds"].values()), 3)
    inputs = stages.read_inputs(work, *(folder / name for name in stages.ERASING[:3]))
    adapter = load_adapter(joint).adapter.to(denoiser.device)
    found = [Candidate(_JOINT, adapter, inputs.choosing.measure(adapter), training)]
    if exact is None:
        return found
    cut = compressed(exact.to(denoiser.device), settings.lora_rank)

    def refine() -> _Made:
        adapter = freed_adapter(cut.adapter, inputs.masks, settings.seed)
        start = Start(adapter, None, inputs.choosing.measure(adapter))
        state = begin_from(denoiser, inputs.batches, inputs.choosing, start, settings)
        measured = distill(denoiser, inputs.batches, inputs.choosing, state, settings)
        return state.adapter, measured, {"steps": state.step, "lr": state.lr, "taken_back": state.taken_back}

    errors = {"error": cut.error, "worst_error": cut.worst}
    makers: dict[str, Callable[[], _Made]] = {
        "concatenated": lambda: (exact, inputs.choosing.measure(exact), {}),
        "compressed": lambda: (cut.adapter, inputs.choosing.measure(cut.adapter), errors),
        "refined": refine,
    }
    return [*(_timed(work, name, make) for name, make in makers.items()), *found]


_Made = tuple[Adapter, Measurement, dict[str, Any]]


def _timed(work: stages.Work, name: str, make: Callable[[], _Made]) -> Candidate:
    work.progress(name, 0, 1)
    started = time.perf_counter()
    adapter, measured, facts = make()
    work.progress(name, 1, 1)
    return Candidate(name, adapter, measured, {**facts, "seconds": round(time.perf_counter() - started, 3)})


def with_rank(ranks: Sequence[int], names: int, settings: EraseSettings) -> EraseSettings:
    """``settings`` with the rank for so many names of a bundle made from bundles of ``ranks``: the largest of these,
    since a serving process swaps adapters of equal shapes; one with room for all names, where that has none."""
    if not ranks:
        return settings
    largest = max(ranks)
    if settings.rank == "auto":
        return settings.for_names(names) if names > largest else dataclasses.replace(settings, rank=largest)
    if settings.rank not in ranks:
        raise SettingsError([
            f"rank is {settings.rank}, but the bundles among the parts have {', '.join(map(str, sorted({*ranks})))}: "
            f"an adapter that is swapped for another must have its rank; leave it to auto, or give --rank {largest}"
        ])  # fmt: skip
    return settings


def _split(parts: Sequence[StoredAdapter], without: Sequence[str]) -> tuple[list[dict[str, Any]], list[Erasure]]:
    """The requests that stay, each with the sha256 of the adapter that it came from, and the erasures that go, which
    the others keep from now on."""
    erasures = Erasures.of(*(part.manifest for part in parts))
    going = erasures.named(without)
    if len(going) == len(erasures):
        raise ConceptError("nothing would be left to erase; take the adapter off the model instead")
    rows = [
        (Erasure.from_dict(row), row.get("adapter", part.sha256))
        for part in parts
        for row in part.manifest.get("requests", [part.manifest])
    ]
    staying = [(one, origin) for one, origin in rows if one not in going]
    stay = keeping([one for one, _ in staying], going)
    return [{**one.as_dict(), "adapter": origin} for one, (_, origin) in zip(stay, staying, strict=True)], going


def _withdrawn(work: stages.Work, erasures: Sequence[Erasure], adapter: Adapter) -> dict[str, Any]:
    """How far every withdrawn concept still is from what the base model draws for it."""
    if not erasures:
        return {}
    meter = Meter(work.denoiser, draw_held_out(work.denoiser, Erasures(*erasures), work.request.settings, "report"))
    return {name: {"moved": far, "back": far <= BACK_WITHIN} for name, far in meter.moved(adapter).items()}


def freed_adapter(adapter: Adapter, masks: Masks, seed: int) -> Adapter:
    """An adapter with the change of ``adapter`` that training may extend to all that ``masks`` let move. A direction of
    the rank that is not used gets a random A, as in a fresh adapter: where both A and B are zero, nothing is learnt."""
    generator = stream(seed, "adapter")
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
