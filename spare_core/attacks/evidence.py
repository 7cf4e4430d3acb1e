"""Figures of attacks as part of an evaluation: what the gate judges and the registry keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spare_core.adapters.directory import StoredAdapter
from spare_core.attacks.attack import attack
from spare_core.errors import InputError
from spare_core.evaluation.attacked import attack_figures
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.report_files import EVALUATION, read_report
from spare_core.evaluation.suite import Suite
from spare_core.files.atomic import write_json
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.progress import OnProgress, no_progress


def check_entry(evaluation: Path, base_digest: str, stored: Sequence[StoredAdapter], suite: Suite) -> None:
    """Refuse an evaluation of something else, before any work.

    Raises:
        InputError: if it is none, or of other adapters, another base or another suite.
    """
    report = read_report(evaluation)
    own = (base_digest, [one.sha256 for one in stored], suite.name)
    theirs = report["base_digest"], [one["sha256"] for one in report["adapters"]], report["suite"]
    for name, ours, other in zip(("base model", "adapters", "suite"), own, theirs, strict=True):
        if ours != other:
            raise InputError(
                f"{evaluation / EVALUATION} is an evaluation of other {name} than the one attacked; give the folder of "
                "`spare evaluate` with the same model, --adapter and --suite"
            )


def enter(evaluation: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Enter an attack's figures in an evaluation, in place of earlier ones; returns it."""
    entered = {**read_report(evaluation), "attacks": attack_figures(report)}
    write_json(evaluation / EVALUATION, entered)
    return entered


def attack_evaluated(
    denoiser: UNetDenoiser,
    base_digest: str,
    stored: Sequence[StoredAdapter],
    suite: Suite,
    judge: Judge,
    evaluation: Path,
    budget: str,
    attacks: Sequence[str],
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Attack adapters that were just evaluated, all that they erase, and enter the figures; what was found is not kept.
    Returns the evaluation."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "attack"
        report = attack(
            denoiser, base_digest, stored, suite, judge, [], output, budget, attacks, on_progress=on_progress
        )
    return enter(evaluation, report)
