"""One evaluation from end to end: forgetting, retention, damage, pictures; schema ``spare.evaluation/1``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from spare_core.adapters.directory import StoredAdapter
from spare_core.adapters.manifest import versions
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures, title_of
from spare_core.concepts.names import normalise, same_concept
from spare_core.errors import SettingsError
from spare_core.evaluation.findings import Question, by_harm, by_presence, findings
from spare_core.evaluation.grid import GridResult, base_grid, draw_grid, with_further
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.matrix import check_continues, continued, matrix_plot, rebounds
from spare_core.evaluation.metrics import check_drawn
from spare_core.evaluation.reference import load_reference
from spare_core.evaluation.report import ERASED_ROWS, contact_sheet, profile_plot, sheet_rows
from spare_core.evaluation.report_files import MATRIX, PROFILE, SCHEMA, SHEET, check_report_output, write_report
from spare_core.evaluation.suite import DOMAINS, Suite, domain_of
from spare_core.evaluation.suite_drift import SuiteDrift
from spare_core.method.probes import draw_held_out
from spare_core.method.residual import Measurement, Meter
from spare_core.method.settings import EraseSettings
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.progress import OnProgress, no_progress

_HELD_OUT: Final = 16
"""Trajectories a side that an evaluation measures on, if the training measured on fewer."""
_EACH: Final = 3
"""Minimum trajectories of each kept concept that the suite has not."""
_EACH_ERASED: Final = 8
"""Minimum trajectories of each erased concept: the gate bounds how much more is left of one than when it was added."""


def evaluate(
    denoiser: UNetDenoiser,
    base_digest: str,
    stored_adapters: Sequence[StoredAdapter],
    suite: Suite,
    erased: Sequence[str],
    kind: str | None,
    output: Path,
    judge: Judge,
    on_progress: OnProgress = no_progress,
    batch_size: int | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate the base and, if any are given, all adapters together; writes the report and returns it.

    ``erased`` are of the domain ``kind``; without one, of the domain that has them; of none, all that the adapters
    erase.

    ``output`` receives ``evaluation.json``, ``contact_sheet.png`` and, if an adapter has a profile, ``timesteps.png``;
    with ``before``, the report on a bundle before it changed, also ``matrix.png``. An earlier evaluation there is
    replaced. Whether an adapter belongs to this base is for the caller to refuse
    (:func:`spare_core.adapters.directory.check_base`); the report says it.

    Raises:
        InputError: before any work: a concept that the suite lacks, a wrong kind, an adapter that does not fit the
            model, an output folder that holds something else.
        TrainingError: if a prediction is not finite.
        StorageError: if the disk would not take a file.
    """
    question = _check_request(suite, erased, kind, stored_adapters)
    check_report_output(output)
    check_continues(before, base_digest)
    _check_model(denoiser, suite, stored_adapters)
    clock = _Clock(on_progress)
    with clock.stage("reference"):
        reference, accuracy = load_reference(suite, judge)
    with clock.stage("measure"):
        measured = _measure(denoiser, base_digest, stored_adapters, question)
    with clock.stage("base"):
        base, cached = base_grid(denoiser, base_digest, suite, judge, batch_size, clock.counting)
        base = with_further(base, denoiser, base_digest, suite, judge, question.erased, batch_size, clock.counting)
    after = None
    if stored_adapters:
        with clock.stage("adapted"):
            adapters = [stored.adapter for stored in stored_adapters]
            after = draw_grid(
                denoiser, suite, judge, adapters, batch_size, clock.counting, suite.all_cells(question.erased)
            )
    drawn = len(base)
    base, after = question.asked(base), None if after is None else question.asked(after)
    with clock.stage("metrics"):
        found = findings(base, after, question, reference)
    report = {
        "schema": SCHEMA,
        "suite": suite.name,
        "erased": list(question.erased_names),
        "kinds": list(question.kinds),
        "judge": {"name": judge.name, "digest": judge.digest, "accuracy": accuracy},
        **suite.sampling(),
        "resolution": suite.resolution or denoiser.resolution,
        **found,
        "aside": {domain: [suite.names(domain)[row] for row in rows] for domain, rows in question.aside.items()},
        "aside_pictures": drawn - len(base),
        **_summarised(measured),
        "adapters": [_adapter_facts(stored, base_digest) for stored in stored_adapters],
        "base_digest": base_digest,
        "base_cached": cached,
        "model": denoiser.describe(),
        "seconds": clock.seconds,
        "versions": versions(),
    }
    if stored_adapters:
        report["history"] = continued(before, report)
        report["rebounds"] = rebounds(report["history"])
    return write_report(output, report, _pictures(base, after, report, question, stored_adapters))


def _check_request(
    suite: Suite, erased: Sequence[str], kind: str | None, adapters: Sequence[StoredAdapter]
) -> Question:
    if kind is not None and kind not in DOMAINS:
        raise SettingsError([f"kind is {kind!r}; a suite has {' and '.join(DOMAINS)}"])
    erasures = Erasures.of(*(stored.manifest for stored in adapters)) if adapters else None
    if erased:
        found = [(kind or suite.domain(text), text) for text in erased]
    elif erasures is not None and kind is None:
        found = [(domain_of(part), part.concept) for part in erasures]
        found += [(domain_of(part), alias) for part in erasures for alias in part.aliases if suite.has(alias)]
    else:
        raise SettingsError(["no erased concept was named; name one or more of the suite's with --erased"])
    places = dict.fromkeys((domain, suite.find(text, domain)) for domain, text in found)
    rows = {side: tuple(row for domain, row in places if domain == side) for side in DOMAINS}
    asked = {side: some for side, some in rows.items() if some}
    cells = suite.all_cells(asked)
    check_drawn({"style": cells.styles, "object": cells.objects}, asked)
    if erasures is None:
        return Question(suite, asked)
    surrogates = [erasures.surrogate(part.concept) for part in erasures]
    kept = [name for frame in erasures.frames for name in erasures.retained(frame) if name not in surrogates]
    aside = {
        side: tuple(
            row for row, name in enumerate(suite.names(side)) if erasures.erased(name) and row not in rows[side]
        )
        for side in DOMAINS
    }
    becomes = {}
    for domain, row in places:
        own, surrogate = suite.names(domain)[row], erasures.surrogate(suite.names(domain)[row])
        found_rows = [i for i, name in enumerate(suite.names(domain)) if same_concept(name, surrogate)]
        if found_rows and surrogate != own:
            becomes[domain, row] = found_rows[0]
    return Question(suite, asked, tuple(kept), tuple(surrogates), aside, becomes)


def _check_model(denoiser: UNetDenoiser, suite: Suite, stored_adapters: Sequence[StoredAdapter]) -> None:
    denoiser.check_prompts([suite.prompt(obj, style) for obj in suite.objects for style in suite.styles])
    for stored in stored_adapters:
        with stored.adapter.to(denoiser.device).attached(denoiser):
            pass


class _Clock:
    """Times stages and passes their progress on."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress, self._stage = on_progress, ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage = name
        self._on_progress(name, 0, 1)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
        self._on_progress(name, 1, 1)

    def counting(self, done: int, total: int) -> None:
        """Progress within the stage."""
        self._on_progress(self._stage, done, total)


def _measure(
    denoiser: UNetDenoiser, base_digest: str, stored_adapters: Sequence[StoredAdapter], question: Question
) -> list[tuple[StoredAdapter, Measurement]]:
    """Residuals and drift of each adapter that erases one of the concepts asked about, on latents and noise its
    training never saw, all adapters on. Drift is that of everything the suite has in the domains of what is erased,
    whether the erasure named it or not, and of what else it named."""
    measured, suite = [], question.suite
    on = [other.adapter for other in stored_adapters]
    for stored in stored_adapters:
        erasures = Erasures.of(stored.manifest)
        if not any(erasures.erased(name) for name in question.erased_names):
            continue
        settings = EraseSettings.from_mapping(stored.manifest["settings"])
        drift: dict[str, float] = {}
        for domain in dict.fromkeys(domain_of(part) for part in erasures):
            drift |= SuiteDrift(denoiser, base_digest, suite, domain, settings).measure(erasures, *on)
        rest = _keeping_the_rest(erasures, suite, drift)
        fresh = dataclasses.replace(
            settings,
            seed=(settings.seed + 1) % 2**31,
            heldout=max(_HELD_OUT, settings.heldout, _EACH_ERASED * len(rest)),
        )
        found = Meter(denoiser, draw_held_out(denoiser, rest, fresh, "report", each=_EACH)).measure(*on)
        known = {normalise(name) for name in drift}
        besides = {name: moved for name, moved in found.drift.items() if normalise(name) not in known}
        measured.append((stored, dataclasses.replace(found, drift=drift | besides)))
    return measured


def _keeping_the_rest(erasures: Erasures, suite: Suite, known: Collection[str]) -> Erasures:
    """The same erasures, as if they had been asked to keep what is not ``known``: of their own names those that the
    suite has not, and of the suite's those that appear nowhere but with what is erased."""
    answered = {normalise(name) for name in known}
    missing = {
        domain: [name for name in suite.names(domain) if normalise(name) not in answered and not erasures.erased(name)]
        for domain in DOMAINS
    }

    def kept(part: Erasure) -> tuple[str, ...]:
        own = [name for name in part.keep if normalise(name) not in answered]
        return tuple(dict.fromkeys((*own, *missing[domain_of(part)])))

    parts = [dataclasses.replace(part, keep=kept(part)) for part in erasures]
    return Erasures(*parts, bundle=erasures.bundle)


def _summarised(measured: Sequence[tuple[StoredAdapter, Measurement]]) -> dict[str, Any]:
    """Means over the concepts and the adapters measured, and each of them."""
    if not measured:
        return {
            "residual": None, "residuals": {}, "drift": None, "mean_drift": None, "unnamed_drift": None, "measured": [],
        }  # fmt: skip
    drifts: dict[str, list[float]] = {}
    for _, measurement in measured:
        for name, drift in measurement.drift.items():
            drifts.setdefault(name, []).append(drift)
    residuals = {name: residual for _, measurement in measured for name, residual in measurement.residuals.items()}
    return {
        "residual": sum(residuals.values()) / len(residuals),
        "residuals": residuals,
        "drift": {name: sum(values) / len(values) for name, values in drifts.items()},
        "mean_drift": sum(m.mean_drift for _, m in measured) / len(measured),
        "unnamed_drift": max((m.unnamed_drift for _, m in measured if m.unnamed_drift is not None), default=None),
        "measured": [{"adapter": stored.sha256, **m.as_dict()} for stored, m in measured],
    }


def _adapter_facts(stored: StoredAdapter, base_digest: str) -> dict[str, Any]:
    return {
        "folder": str(stored.folder),
        "erased": Erasures.of(stored.manifest).surrogates(),
        "sha256": stored.sha256,
        "base_matches": stored.base_digest == base_digest,
    }


def _pictures(
    before: GridResult,
    after: GridResult | None,
    report: dict[str, Any],
    question: Question,
    stored_adapters: Sequence[StoredAdapter],
) -> dict[str, bytes]:
    """The PNG files of a report, by name."""
    suite, rows = question.suite, []
    for kind in question.kinds:
        left, harmed = (
            [suite.find(row["concept"], kind) for row in rows_of]
            for rows_of in (by_presence(report["per_concept"], kind), by_harm(report["per_concept"], [kind]))
        )
        rows += sheet_rows(before, suite, left, kind, question.surrogate_rows(kind), harmed)
    title = f"{title_of(question.erased_names)}: {'base only' if after is None else 'before and after erasing'}"
    if len(question.erased_names) > ERASED_ROWS:
        title += f" (of each kind the {ERASED_ROWS} that are left most)"
    files = {SHEET: contact_sheet(before.thumbnails, None if after is None else after.thumbnails, rows, title)}
    profiles = {
        Erasures.of(stored.manifest).title: stored.manifest["timestep_profile"]
        for stored in stored_adapters
        if "timestep_profile" in stored.manifest
    }
    if profiles:
        files[PROFILE] = profile_plot(profiles)
    if len(report.get("history", ())) > 1:
        files[MATRIX] = matrix_plot(report["history"])
    return files
