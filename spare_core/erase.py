"""One erasure from end to end: examples, timestep profile, saliency, masks, distillation, the adapter directory.

Everything that can be refused is refused before the output folder is made. A run that was killed goes on with the same
call and gives the same adapter as one that was not.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spare_core.adapter import Adapter, check_rank
from spare_core.artifact import save_adapter
from spare_core.canvas.protocol import OBJECTS, STYLES, TEMPLATE
from spare_core.checkpoint import Checkpoint, check_output
from spare_core.concept import DEFAULTS, KINDS, Erasure, Kind, same_concept
from spare_core.denoiser import UNetDenoiser, choose_device, load_denoiser
from spare_core.distill import distill, start
from spare_core.errors import ConceptError, InputError, OutputError, TrainingError
from spare_core.examples import Examples, all_prompts, generate_examples, load_images
from spare_core.locations import local_path
from spare_core.masks import describe_masks
from spare_core.measures import Meter
from spare_core.model_files import find_model
from spare_core.saliency import choose_masks
from spare_core.settings import EraseSettings
from spare_core.timesteps import TimestepProfile, TimestepSampler, profile_timesteps

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


def build_erasure(
    model: str,
    concept: str,
    surrogate: str,
    kind: Kind | None = None,
    keep: Sequence[str] = (),
    template: str | None = None,
    contexts: Sequence[str] | None = None,
) -> Erasure:
    """An erasure with the defaults of its model: Canvas knows its grid, every other model gets its kind's defaults.

    On Canvas, names are found whatever their case, and unless ``keep`` is given all other concepts of the domain are
    kept.

    Raises:
        ConceptError: see :class:`Erasure`; on Canvas also for a name outside its grid.
    """
    if model == "canvas" and template is None and contexts is None:
        return _canvas_erasure(concept, surrogate, kind, keep)
    if kind not in DEFAULTS:
        raise ConceptError(f"say what {concept!r} is, --kind {', '.join(KINDS)}; got {kind!r}")
    defaults = DEFAULTS[kind]
    used = template or defaults.template
    if contexts is None:
        contexts = defaults.contexts if "{context}" in used else ()
    if not keep:
        keep = [name for name in defaults.keep if not same_concept(name, concept)]
    return Erasure(concept, surrogate, kind, tuple(keep), used, tuple(contexts))


def _canvas_erasure(concept: str, surrogate: str, kind: Kind | None, keep: Sequence[str]) -> Erasure:
    domains: dict[Kind, tuple[str, ...]] = {"style": STYLES, "object": tuple(OBJECTS)}
    if kind is None:  # that of the nearest name: "Neon Lights" is answered with styles, not with objects
        kind = "style" if _nearest(concept, (*STYLES, *OBJECTS)) in STYLES else "object"
    if kind not in domains:
        raise ConceptError(f"kind is {kind!r}; Canvas knows style and object")
    # Built first with the words as given, so that an empty or contradictory request is named as such.
    Erasure(concept, surrogate, kind, tuple(keep), "{concept}", ())
    names = [_canvas_name(text, domains[kind], kind) for text in (concept, surrogate, *keep)]
    kept = names[2:] or [name for name in domains[kind] if name not in names]
    slots = {"style": ("{context}", "{concept}"), "object": ("{concept}", "{context}")}[kind]
    contexts = tuple(OBJECTS) if kind == "style" else STYLES
    return Erasure(names[0], names[1], kind, tuple(kept), TEMPLATE.format(object=slots[0], style=slots[1]), contexts)


def _canvas_name(text: str, domain: Sequence[str], kind: str) -> str:
    for name in domain:
        if same_concept(text, name):
            return name
    raise ConceptError(f"Canvas has no {kind} {text!r}; nearest: {_nearest(text, domain)!r}; all: {', '.join(domain)}")


def _nearest(text: str, names: Sequence[str]) -> str:
    return difflib.get_close_matches(" ".join(text.split()).title(), names, n=1, cutoff=0.0)[0]


def erase(
    model: str,
    erasure: Erasure,
    settings: EraseSettings,
    output: Path,
    images: str | Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Erase a concept; returns the manifest that was written to ``output/spare.json``.

    The same call again returns the finished result, or goes on where a killed run stopped. ``model`` and ``images``
    may lie in S3.

    Raises:
        InputError: before any work; or, if the model turns out not to know the concept, later. Nothing is left behind.
        StoreError: if model or images cannot be fetched from S3.
        TrainingError: if a loss stops being finite.
        StorageError: if the disk would not take a file.
    """

    def fetching(done: int, total: int) -> None:
        progress("fetch (MiB)", done >> 20, total >> 20)

    files = find_model(model, fetching)
    choose_device(settings.device)
    folder = local_path(images, on_progress=fetching) if images else None
    pictures = _images_digest(folder) if folder else None
    progress("load", 0, 1)
    digest = files.digest()
    request = {**erasure.as_dict(), **settings.as_dict(), "base": digest, "images": pictures}
    finished = check_output(output, request)
    if finished is not None:
        return finished
    _repeatable()
    denoiser = load_denoiser(model, settings.device, settings.dtype, settings.low_memory)
    denoiser.check_prompts(all_prompts(erasure))
    check_rank(denoiser.target_layers(), settings.rank)
    _check_space(output, denoiser, settings)
    progress("load", 1, 1)
    checkpoint = Checkpoint(output, request)
    try:
        manifest = _Run(denoiser, erasure, settings, folder, checkpoint, progress).run()
        manifest["base"] = {"digest": digest, **denoiser.settings()}
        manifest["request"] = request
        written = save_adapter(output, manifest.pop("adapter"), denoiser.lora_prefix, manifest)
    except (InputError, TrainingError):
        checkpoint.discard()  # these come again with every try: a checkpoint would only stand in the next one's way
        raise
    except BaseException:
        checkpoint.abandon_if_empty()
        raise
    checkpoint.remove()
    return written


class _Run:
    """The stages of one erasure; each is read from the checkpoint if an earlier process finished it."""

    def __init__(
        self,
        denoiser: UNetDenoiser,
        erasure: Erasure,
        settings: EraseSettings,
        images: Path | None,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> None:
        self.denoiser, self.erasure, self.settings, self.images = denoiser, erasure, settings, images
        self.checkpoint, self.progress = checkpoint, progress
        self.seconds: dict[str, float] = checkpoint.load_json("seconds") or {}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress(name, 0, 1)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)
        self.checkpoint.save_json("seconds", self.seconds)
        self.progress(name, 1, 1)

    def run(self) -> dict[str, Any]:
        """Everything ``spare.json`` says of the run, and the adapter itself under "adapter"."""
        settings, denoiser = self.settings, self.denoiser
        examples = self._examples()
        with self._stage("timesteps"):
            profile = profile_timesteps(denoiser, examples, settings)
            sampler = TimestepSampler.from_profile(profile, settings)
            meter = Meter(denoiser, examples, settings.seed)
        masks = self._masks(examples, profile)
        adapter = Adapter.initialise(denoiser, masks, settings.rank, settings.alpha, settings.seed)
        state = start(adapter, settings)
        self.checkpoint.restore_state(state)
        with self._stage("distill"):
            measured = distill(
                denoiser,
                examples,
                sampler,
                meter,
                state,
                settings,
                on_measure=self.checkpoint.save_state,
                on_step=lambda step: self.progress("distill", step, settings.steps),
            )
        return {
            **self.erasure.as_dict(),
            "settings": settings.as_dict(),
            "seeds": {"run": settings.seed},
            "mask": {"kind": settings.mask, **describe_masks(masks)},
            "timestep_profile": {**profile.as_dict(), "probabilities": sampler.probabilities.tolist()},
            "training": {
                "steps": state.step,
                "stopped_early": state.stopped_early,
                "history": state.history,
                "last_losses": dict(zip(("forget", "retain"), state.losses[-1], strict=True)),
            },
            **measured.as_dict(),
            "seconds": self.seconds,
            "peak_memory_bytes": peak_memory(denoiser.device),
            "adapter": adapter,
        }

    def _examples(self) -> Examples:
        examples = self.checkpoint.load_examples(self.denoiser.device)
        if examples is None:
            with self._stage("prepare"):
                examples = generate_examples(self.denoiser, self.erasure, self.settings, self.images)
                self.checkpoint.save_examples(examples)
        return examples

    def _masks(self, examples: Examples, profile: TimestepProfile) -> Any:
        masks = self.checkpoint.load_masks()
        if masks is None:
            with self._stage("saliency"):
                masks = choose_masks(self.denoiser, examples, profile, self.settings)
                self.checkpoint.save_masks(masks)
        return masks


def _images_digest(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's images; all are decoded, so that a bad one is refused now."""
    load_images(folder, 8)
    hasher = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            hasher.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()


def _check_space(output: Path, denoiser: UNetDenoiser, settings: EraseSettings) -> None:
    """Adapter, its optimiser's moments and one spare copy must fit on the disk."""
    parameters = sum(settings.rank * sum(layer.weight.shape) for layer in denoiser.target_layers().values())
    needed = 4 * parameters * 6 + 64 * 2**20
    if settings.mask == "weight":  # a byte of mask for every weight, an index and a value for those that move
        weights = sum(layer.weight.numel() for layer in denoiser.target_layers().values())
        needed += int(weights * (1 + 8 * settings.density))
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{existing} has {free >> 20} MiB free, the run needs about {needed >> 20} MiB; make room or give another "
            "--output"
        )


def _repeatable() -> None:
    """Same seed, same machine: same bytes, on a CPU. CUDA's fused attention has no deterministic backward pass and only
    warns; the rest there is made repeatable."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most memory this process has used so far, in bytes: of the host, and of a CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
