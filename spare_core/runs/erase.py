"""One adapter from end to end in one process, for one concept or several: all stages, then the adapter directory.

Everything that can be refused is refused before the output folder is made. A run that was killed goes on with the same
call and gives the same adapter as one that was not.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import OutputError
from spare_core.method.settings import EraseSettings
from spare_core.models.device import choose_device
from spare_core.models.unet import UNetDenoiser
from spare_core.runs import stages
from spare_core.runs.progress import OnProgress, no_progress
from spare_core.runs.request import build_request
from spare_core.runs.resume import Checkpoint, check_run_output
from spare_core.runs.stage_files import is_finished


def erase(
    model: str,
    erasures: Erasure | Erasures,
    settings: EraseSettings,
    output: Path,
    images: str | Path | None = None,
    progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Erase one concept or more; returns the manifest that was written to ``output/spare.json``.

    The same call again returns the finished result, or goes on where a killed run stopped. ``model`` and ``images``
    may lie in S3.

    Raises:
        InputError: before any work; or, if the model turns out not to know the concept, later. Nothing is left behind.
        StoreError: if model or images cannot be fetched from S3.
        TrainingError: if a loss stops being finite.
        StorageError: if the disk would not take a file.
    """
    choose_device(settings.device)
    if isinstance(erasures, Erasure):
        erasures = Erasures(erasures)
    request = build_request(model, erasures, settings, images, progress)
    finished = check_run_output(output, request.identity())
    if finished is not None:
        return finished
    work = stages.open_work(request, progress)
    check_space(output, work.denoiser, settings)
    with Checkpoint(output, request.identity()) as folder:
        return run_stages(work, folder, output)


def run_stages(work: stages.Work, folder: Path, output: Path) -> dict[str, Any]:
    """All stages, in ``folder``; one that an earlier process finished there is not done again."""
    examples, profile, masks, state = (folder / name for name in stages.ERASING)
    if not is_finished(examples):
        stages.write_examples(work, examples)
    if not is_finished(profile):
        stages.write_profile(work, examples, profile)
    if not is_finished(masks):
        stages.write_masks(work, examples, profile, masks)
    return stages.write_adapter(work, examples, profile, masks, output, state)


def check_space(output: Path, denoiser: UNetDenoiser, settings: EraseSettings) -> None:
    """Refuse a disk that adapter, its optimiser's moments and one spare copy do not fit on.

    Raises:
        OutputError: saying how much is there and how much is needed.
    """
    parameters = sum(settings.lora_rank * sum(layer.weight.shape) for layer in denoiser.target_layers().values())
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
