"""Runs: one parent a request, one child a stage and KFP run, in the experiment ``spare``.

MLflow has no "create if absent", so a run is found by a tag, created if there is none, and looked for again: of
several that raced, the oldest stays and the others are deleted. Tags that are searched for hold a sha256 of what they
stand for: no text of a user is ever part of a filter.

Nothing of the environment is logged. What does not fit MLflow's limits is cut with an ellipsis at its end.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from spare_core.errors import RegistryError, RegistryInputError
from spare_core.files.addresses import is_s3
from spare_core.registry.client import artifact_root, asking, connect, scrubbed
from spare_core.registry.naming import concept_slug

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT: Final = "spare"
REQUEST: Final = "spare.request_id"
PARENT: Final = "mlflow.parentRunId"
_REQUEST_KEY: Final = "spare.request_key"
"""sha256 of the request id, on the parent only."""
_CHILD_OF: Final = "spare.child_of"
"""sha256 of the request id, on each child."""
_STAGE_KEY: Final = "spare.stage_key"
"""sha256 of request id, stage and KFP run id, on the child."""
_RUN_KEY: Final = "spare.kfp_run_key"
"""sha256 of the KFP run id, on the child."""
_STAGE: Final = re.compile(r"[a-z][a-z0-9_-]{0,49}")
_KEY_PART: Final = re.compile(r"(?=.*[^. ])[\w.\- :]{1,100}")
_KEY_CHARACTERS: Final = 250
_PARAM_CHARACTERS: Final = 6000
_TAG_CHARACTERS: Final = 8000
_DIGEST_CHARACTERS: Final = 36
_METRICS_A_CALL: Final = 1000
_PARAMS_A_CALL: Final = 100
_FLUSH_SECONDS: Final = 5.0
"""A curve that is watched while it grows may lag by so much."""

_GPU: Final = Path("/dev/nvidiactl")

Outcome = Literal["FINISHED", "FAILED", "KILLED"]


class StageRun:
    """What a stage says of itself while it runs; :func:`stage_run` opens and closes it."""

    def __init__(self, client: MlflowClient, run_id: str, parent_id: str, request_id: str, attempt: int) -> None:
        self.client, self.run_id, self.parent_id, self.request_id = client, run_id, parent_id, request_id
        self.attempt = attempt
        """1, and one more each time the stage is tried again in the same KFP run."""
        self._metrics: list[Any] = []
        self._flushed = time.monotonic()

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; longer than 6000 characters, they are cut and end in an ellipsis.

        MLflow's parameters never change. What a later attempt gives another value goes beside the first as
        ``<name>.attempt<N>``.
        """
        from mlflow.entities import Param

        with asking("read the stage's run"):
            known = self.client.get_run(self.run_id).data.params
        wanted = {metric_key(name): _cut(scrubbed(str(value)), _PARAM_CHARACTERS) for name, value in values.items()}
        params = [
            Param(name if known.get(name, value) == value else f"{name}.attempt{self.attempt}", value)
            for name, value in wanted.items()
        ]
        with asking("log parameters"):
            for start in range(0, len(params), _PARAMS_A_CALL):
                self.client.log_batch(self.run_id, params=params[start : start + _PARAMS_A_CALL])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log figures of one step; sent in batches, at the latest when the stage ends."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics += [Metric(metric_key(name), float(value), now, step) for name, value in values.items()]
        if len(self._metrics) >= _METRICS_A_CALL or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the figures that wait."""
        with asking("log metrics"):
            while self._metrics:
                self.client.log_batch(self.run_id, metrics=self._metrics[:_METRICS_A_CALL])
                del self._metrics[:_METRICS_A_CALL]
        self._flushed = time.monotonic()

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, in place of what they held before."""
        _set_tags(self.client, self.run_id, values)

    def dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, int]) -> None:
        """Log what the stage reads as one of MLflow's inputs.

        Args:
            name: what it is, for people.
            digest: of its content; MLflow keeps the first 36 characters.
            source: where it is: a path, an ``s3://`` address, or words for what is made from words.
            context: what it is for, "training" or "evaluation".
            profile: counts by name.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = "s3" if is_s3(source) else "local" if Path(source).is_absolute() else "code"
        found_at = {"tags": {"mlflow.source.name": source}} if kind == "code" else {"uri": source}
        dataset = Dataset(
            _cut(name, 500), digest[:_DIGEST_CHARACTERS], kind, json.dumps(found_at), profile=json.dumps(dict(profile))
        )
        with asking("log a dataset"):
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or a directory with all in it, into ``folder`` of the run's artifacts."""
        with asking(f"store {path.name}"):
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder or None)
            else:
                self.client.log_artifact(self.run_id, str(path), folder or None)

    def text(self, content: str, name: str) -> None:
        """Upload ``content`` as the artifact ``name``."""
        with asking(f"store {name}"):
            self.client.log_text(self.run_id, content, name)


def metric_key(name: str) -> str:
    """A name that MLflow takes for a metric or parameter: parts of the path ``name`` that it would refuse, as slugs."""
    parts = [part if _KEY_PART.fullmatch(part) else concept_slug(part) for part in name.split("/")]
    return "/".join(parts)[:_KEY_CHARACTERS]


@contextmanager
def stage_run(request_id: str, stage: str, kfp_run_id: str) -> Iterator[StageRun]:
    """The run of one stage while it works: FINISHED after the body, FAILED with the error's message if it raises.

    On a node with a GPU, MLflow's system metrics are logged all the while; MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING says
    otherwise, as it does in MLflow.

    A stage that is tried again in the same KFP run opens its own run again; the first stage of a request also makes the
    parent.

    Raises:
        RegistryInputError: for a stage or an id that cannot be one.
        RegistryError: if MLflow does not take what is logged; the stage fails then.
    """
    _check_ids(request_id, stage, kfp_run_id)
    client = connect()
    experiment = _experiment(client)
    parent = _parent(client, experiment, request_id)
    key = sha256_of(request_id, stage, kfp_run_id)
    tags = {
        REQUEST: request_id, _CHILD_OF: sha256_of(request_id), _STAGE_KEY: key, PARENT: parent.info.run_id,
        "spare.stage": stage, "spare.kfp_run_id": kfp_run_id, _RUN_KEY: sha256_of(kfp_run_id),
        "mlflow.runName": stage, "spare.attempt": "0",
    }  # fmt: skip
    child, *doubles = _find_or_create(client, experiment, _STAGE_KEY, key, tags)
    _delete(client, doubles)
    run = StageRun(client, child.info.run_id, parent.info.run_id, request_id, _open(client, child))
    try:
        with _system_metrics(run):
            yield run
            run.flush()
    except BaseException as error:
        _fail(run, error)
        raise
    _terminate(client, run.run_id, "FINISHED")


@contextmanager
def _system_metrics(run: StageRun) -> Iterator[None]:
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

    wanted = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get()
    if not (_GPU.exists() if wanted is None else wanted):
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.run_id, resume_logging=run.attempt > 1, tracking_uri=run.client.tracking_uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def end_request(request_id: str, status: Outcome, tags: Mapping[str, str] | None = None) -> str:
    """Close a request, whatever became of it; returns the parent's run id.

    For the exit handler: the parent gets ``status`` and ``tags``; stages that were killed and still count as running
    become KILLED. Called again, the last call holds.
    """
    _check_ids(request_id, "end", "end")
    client = connect()
    experiment = _experiment(client)
    parent = _parent(client, experiment, request_id)
    _set_tags(client, parent.info.run_id, {name: str(value) for name, value in (tags or {}).items()})
    for child in _find(client, experiment, _CHILD_OF, sha256_of(request_id)):
        if child.data.tags.get(PARENT) != parent.info.run_id:
            _set_tags(client, child.info.run_id, {PARENT: parent.info.run_id})
        if child.info.status == "RUNNING":
            _terminate(client, child.info.run_id, "KILLED")
    _terminate(client, parent.info.run_id, status)
    return str(parent.info.run_id)


def stages_of(kfp_run_id: str) -> dict[str, dict[str, str]]:
    """The requests that a KFP run worked on; of each, by its id, the stages that reached MLflow, and what went wrong in
    them: "" in those that finished."""
    client = connect()
    experiment = _experiment(client)
    found: dict[str, dict[str, str]] = {}
    for run in _find(client, experiment, _RUN_KEY, sha256_of(kfp_run_id)):
        error = run.data.tags.get("spare.error", "it was killed, or its machine was lost")
        stages = found.setdefault(run.data.tags[REQUEST], {})
        stages[run.data.tags["spare.stage"]] = "" if run.info.status == "FINISHED" else error
    return found


def _check_ids(request_id: str, stage: str, kfp_run_id: str) -> None:
    if not _STAGE.fullmatch(stage):
        raise RegistryInputError(f"stage is {stage!r}; it must be a short lower-case word such as 'distill'")
    for what, value in (("request id", request_id), ("KFP run id", kfp_run_id)):
        if not value.strip() or len(value) > 250:
            raise RegistryInputError(f"the {what} is {value[:60]!r}; it must be 1 to 250 characters long")


def sha256_of(*parts: str) -> str:
    """Hexadecimal digest of several texts, told apart from any other several."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _experiment(client: MlflowClient) -> str:
    from mlflow.exceptions import MlflowException

    with asking("find the experiment"):
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return str(client.create_experiment(EXPERIMENT, artifact_root()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(EXPERIMENT)
    if found.lifecycle_stage != "active":
        raise RegistryError(
            f"the MLflow experiment {EXPERIMENT!r} was deleted; restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


def _parent(client: MlflowClient, experiment: str, request_id: str) -> Any:
    """The request's parent run, running. Children of one that lost a race move to the one that stays."""
    key = sha256_of(request_id)
    tags = {REQUEST: request_id, _REQUEST_KEY: key, "mlflow.runName": request_id}
    parent, *doubles = _find_or_create(client, experiment, _REQUEST_KEY, key, tags)
    if doubles:
        gone = {run.info.run_id for run in doubles}
        for child in _find(client, experiment, _CHILD_OF, key):
            if child.data.tags.get(PARENT) in gone:
                _set_tags(client, child.info.run_id, {PARENT: parent.info.run_id})
        _delete(client, doubles)
    if parent.info.status != "RUNNING":
        with asking("open the request's run again"):
            client.update_run(parent.info.run_id, status="RUNNING")
    return parent


def _find_or_create(client: MlflowClient, experiment: str, tag: str, key: str, tags: Mapping[str, str]) -> list[Any]:
    """All runs with the tag, the one that stays first; one is created if there is none."""
    found = _find(client, experiment, tag, key)
    if not found:
        with asking("create a run"):
            client.create_run(experiment, tags={name: _cut(value, _TAG_CHARACTERS) for name, value in tags.items()})
        found = _find(client, experiment, tag, key)
    if not found:
        raise RegistryError(
            "a run that was just created in MLflow is gone; was it deleted at this moment? Run it again"
        )
    return found


def _find(client: MlflowClient, experiment: str, tag: str, key: str) -> list[Any]:
    """The runs that carry a tag, oldest first; ``key`` is a hexadecimal digest."""
    found: list[Any] = []
    token = None
    with asking("search its runs"):
        while True:
            page = client.search_runs([experiment], f"tags.`{tag}` = '{key}'", max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _delete(client: MlflowClient, runs: list[Any]) -> None:
    with asking("delete a double run"):
        for run in runs:
            client.delete_run(run.info.run_id)


def _open(client: MlflowClient, run: Any) -> int:
    """Mark a stage's run as running; returns the number of this attempt."""
    attempt = int(run.data.tags["spare.attempt"]) + 1
    with asking("open the stage's run"):
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        if "spare.error" in run.data.tags:
            client.delete_tag(run.info.run_id, "spare.error")
    _set_tags(client, run.info.run_id, {"spare.attempt": str(attempt)})
    return attempt


def _fail(run: StageRun, error: BaseException) -> None:
    """Record an error; where MLflow is what failed, that is added to the error and does not take its place."""
    status: Outcome = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    try:
        run.tags({"spare.error": f"{type(error).__name__}: {error}"})
        _terminate(run.client, run.run_id, status)
        run.flush()
    except RegistryError as second:
        error.add_note(f"and MLflow could not be told of it: {second}")


def _terminate(client: MlflowClient, run_id: str, status: Outcome) -> None:
    with asking(f"mark a run as {status}"):
        client.set_terminated(run_id, status)


def _set_tags(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(name, _cut(scrubbed(value), _TAG_CHARACTERS)) for name, value in values.items()]
    if tags:
        with asking("set tags"):
            client.log_batch(run_id, tags=tags)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
