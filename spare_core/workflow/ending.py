"""How a pipeline run ended, in MLflow: by what its stages recorded, not by KFP's word for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from spare_core.registry.tracking import Outcome, end_request, stages_of
from spare_core.workflow.environment import pipeline_run_id

_WENT_WELL: Final = ("SUCCEEDED", "COMPLETE", "CACHED")
_CANCELLED: Final = ("CANCELED", "CANCELLED", "CANCELING")
_FAILED: Final = ("FAILED", "ERROR")
"""What KFP calls how a run ended: the local runner's words, and those of ML Metadata, which its backend hands on."""
_LAST: Final = "gate"
"""The stage that every request comes past, promoted or not."""


def end_runs(state: str, message: str) -> dict[str, dict[str, str]]:
    """Close what this pipeline run opened in MLflow; of each request what went wrong, by stage.

    ``state`` is how the tasks before ended: KFP's local runner says SUCCEEDED where its backend says COMPLETE, a state
    of ML Metadata's, or one of a run that is still going on. So what the stages recorded decides; KFP's word only says
    that somebody cancelled the run, or that a task failed which could not record anything. ``message`` is never filled
    by KFP's backend: then the stages' own errors take its place.
    """
    requests = stages_of(pipeline_run_id())
    found = {}
    for request_id, stages in requests.items():
        wrong = found[request_id] = {stage: error for stage, error in stages.items() if error}
        said = message or "; ".join(f"{stage}: {error}" for stage, error in wrong.items())
        tags = {"spare.outcome": state, **({"spare.outcome.message": said} if said else {})}
        tags |= {f"spare.error.{stage}": error for stage, error in wrong.items()}
        end_request(request_id, outcome(state, stages, len(requests) == 1), tags)
    return found


def outcome(state: str, stages: Mapping[str, str], alone: bool) -> Outcome:
    """What became of a request whose ``stages`` recorded these errors ("": none), in a run of KFP's ``state``;
    ``alone``: the run worked on no other one."""
    if state in _WENT_WELL:
        return "FINISHED"
    if any(stages.values()) or (alone and state in (*_CANCELLED, *_FAILED)):
        return "KILLED" if state in _CANCELLED else "FAILED"
    # Of several requests this one's stages went well; of a single one that which every request comes past says it.
    return "FINISHED" if not alone or _LAST in stages else "FAILED"
