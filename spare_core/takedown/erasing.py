"""One request of a list, erased for itself: the surrogate chosen, the adapter made, measured, registered and judged."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from spare_core.concepts.concept import Erasure
from spare_core.concepts.names import bare_name, same_concept
from spare_core.errors import ConceptError, ImagesError
from spare_core.method.neighbours import Neighbour, rank_neighbours
from spare_core.registry import models, registering
from spare_core.registry.tracking import stage_run
from spare_core.runs.stages import load_base, work_on
from spare_core.store.base import sha256
from spare_core.takedown.ledger import Standing
from spare_core.takedown.parameters import Batch
from spare_core.takedown.request import AUTO, TakedownRequest
from spare_core.takedown.sources import read_picture
from spare_core.takedown.standings import request_of
from spare_core.takedown.work import Told
from spare_core.workflow.environment import open_run_store, pipeline_run_id
from spare_core.workflow.tasks import make_adapter, measure_adapter

if TYPE_CHECKING:
    from spare_core.models.unet import UNetDenoiser

WATCHED: Final = 3
"""How many neighbours are kept besides what a request protects itself."""
TOO_NEAR: Final = 0.02
"""A candidate at less than this distance is another name of the concept to the model, and no surrogate for it."""


class Chosen(NamedTuple):
    """The erasure of a request, and what it was chosen from, nearest first."""

    erasure: Erasure
    ranked: list[Neighbour]
    watched: list[str]


def erase_request(batch: Batch, standing: Standing, unwanted: set[str]) -> Iterator[Told]:
    """The steps of one request, yielded as the ledger records them; ``unwanted`` are the names, normalised, that
    somebody wants gone, and so no surrogates.

    Raises:
        GateRefused: if the policy does not let the adapter pass; it stays registered, and goes into no bundle.
    """
    request, run_id, started = request_of(standing), pipeline_run_id(), time.monotonic()
    check_pictures(request)
    with stage_run(request.request_id, "neighbours", run_id) as run:
        denoiser = load_base(batch.model, batch.base, batch.settings)
        chosen = choose(batch, request, denoiser, unwanted)
        facts = _facts(batch, chosen)
        run.text(json.dumps(facts, indent=2, ensure_ascii=False), "neighbours.json")
        run.params({"concept": request.concept, "surrogate": chosen.erasure.surrogate})
    yield "erasing", {**facts, "pictures_checked": len(request.images)}
    asked = batch.order(request.request_id, chosen.erasure)
    work = work_on(asked.request, denoiser)
    with tempfile.TemporaryDirectory() as scratch:
        adapter, evaluation = Path(scratch) / "adapter", Path(scratch) / "evaluation"
        with stage_run(request.request_id, "erase", run_id) as run:
            make_adapter(asked, run, work, adapter)
        with stage_run(request.request_id, "evaluate", run_id) as run:
            report = measure_adapter(asked, run, work, adapter, evaluation)
        yield "evaluated", {name: report["adapted"][name] for name in ("ua", "ira", "cra")}
        with stage_run(request.request_id, "register", run_id) as run:
            store = open_run_store()
            version = registering.register(run, store, adapter, evaluation)
            verdict, verdict_sha256 = models.judge(version, store, batch.policy)
    if not verdict.passed:
        raise verdict.refused(f"the gate refuses {version.uri}")
    yield "registered", {
        "name": version.name, "version": version.version, "adapter_sha256": version.adapter_sha256,
        "evidence_sha256": version.tags[models.EVIDENCE], "verdict_sha256": verdict_sha256,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def check_pictures(request: TakedownRequest) -> None:
    """Compare the pictures that a request names with what it says they are. They show what is meant, and may show a
    person: they are neither kept nor trained on, and a bundle can still be made when they are gone.

    Raises:
        InputError: if the environment's sources are none.
        ImagesError: for one that is another, may not be read, or cannot be. What it is instead is not told: it would
            go into the ledger, and is somebody else's.
        StoreError: for one that cannot be fetched.
    """
    for image in request.images:
        if sha256(read_picture(image.uri)) != image.sha256:
            raise ImagesError(
                f"the picture {image.uri!r} is not the one that the request means ({image.sha256[:12]}…); ask for the "
                "right one"
            )


def choose(batch: Batch, request: TakedownRequest, denoiser: UNetDenoiser, unwanted: set[str]) -> Chosen:
    """The surrogate that a request names, or else the nearest candidate that is safe; the next ones are watched.

    Raises:
        ConceptError: if no candidate is left.
    """
    possible = batch.candidates_for(request.kind, request.concept)
    bare = {bare_name(name) for name in unwanted}
    safe = [name for name in possible if bare_name(name) not in bare]
    named = request.surrogate if request.surrogate != AUTO else next(iter(safe), "")
    if not named:
        raise ConceptError(
            f"every candidate to replace {request.concept!r} is to be erased itself; name its surrogate, or candidates"
        )
    # Templates and contexts are those of the kind; the surrogate plays no part in the distances.
    ranked = rank_neighbours(denoiser, batch.erasure(request, named), safe, batch.settings) if safe else []
    if request.surrogate == AUTO:
        apart = [one.name for one in ranked if one.distance >= TOO_NEAR]
        if not apart:
            raise ConceptError(
                f"to the model every candidate is {request.concept!r} itself; name its surrogate, or other candidates"
            )
        named = apart[0]
    watched = [one.name for one in ranked if not same_concept(one.name, named)][:WATCHED]
    return Chosen(batch.erasure(request, named, watched), ranked, watched)


def _facts(batch: Batch, chosen: Chosen) -> dict[str, Any]:
    """Facts for the ledger; ``row`` is what a bundle erases it by."""
    erasure = chosen.erasure
    return {
        "row": {
            "concept": erasure.concept, "surrogate": erasure.surrogate, "kind": erasure.kind,
            "keep": list(erasure.keep), "aliases": list(erasure.aliases),
        },
        "watched": chosen.watched,
        "distances": {one.name: round(one.distance, 4) for one in chosen.ranked},
    }  # fmt: skip
