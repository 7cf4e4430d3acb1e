"""Hand a compiled pipeline to a KFP cluster, and wait for it."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.cluster import ENDED, Cluster, Submission
from pipelines.definition import Definition, read_definition
from spare_core.errors import ClusterUnavailable, SettingsError

_CRON_FIELDS = 6
_CRON = re.compile(r"[0-9A-Za-z*/,?\- ]+")
_LOST = 12
"""Number of polls that may fail in a row: the API server of a cluster restarts now and then while its runs go on."""


def submit(
    definition: Path,
    parameters: dict[str, Any],
    endpoint: str,
    experiment: str = "spare",
    run_name: str | None = None,
    pipeline_root: str | None = None,
    namespace: str | None = None,
    service_account: str | None = None,
    cached: bool = True,
    unless_running: bool = False,
) -> dict[str, Any]:
    """Start a run of a compiled pipeline.

    Args:
        definition: the compiled pipeline.
        parameters: values of its types, see :func:`pipelines.parameters.parse`.
        endpoint: the URL of the KFP API server; the token comes from the environment, see :mod:`pipelines.cluster`.
        experiment: created if there is none of that name.
        run_name: by default the pipeline's name and the time.
        pipeline_root: where the artifacts go, as in "s3://bucket/prefix"; by default the cluster's own.
        namespace: for clusters of several users.
        service_account: the Kubernetes service account of the run; by default the cluster's own.
        cached: false to run every task, also one whose result of an earlier run could be taken.
        unless_running: start none while a run of the experiment goes on, and return that one.

    Returns:
        ``run_id``, ``run_name``, ``pipeline``, ``experiment``, ``url``, where a browser shows the run, and ``started``.

    Raises:
        SettingsError: if the file is no compiled pipeline, or the endpoint or the token cannot be used.
        ClusterUnavailable: if the endpoint cannot be reached or is busy.
        ClusterRefused: if it does not let us, or cannot take what we sent.
    """
    compiled = read_definition(definition)
    if not cached:
        _run_everything(compiled)
    cluster = Cluster(endpoint, namespace)
    name = run_name or f"{compiled.name} {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S}"
    asked = compiled.as_dict(), parameters, pipeline_root, service_account
    experiment_id = cluster.experiment(experiment)
    going_on = cluster.unfinished(experiment_id) if unless_running else None
    if going_on:
        run_id, name = going_on
    else:
        run_id = cluster.create_run(Submission(name, experiment_id, *asked))
    return {
        "started": not going_on,
        "run_id": run_id,
        "run_name": name,
        "pipeline": compiled.name,
        "experiment": experiment,
        "url": cluster.run_url(run_id),
    }


def schedule(
    definition: Path,
    parameters: dict[str, Any],
    endpoint: str,
    cron: str,
    name: str,
    experiment: str = "spare",
    pipeline_root: str | None = None,
    namespace: str | None = None,
    service_account: str | None = None,
) -> dict[str, Any]:
    """Have a compiled pipeline run again and again, one run at a time; times that are missed are not made up for.

    Args:
        definition: as for :func:`submit`.
        parameters: as for :func:`submit`.
        endpoint: as for :func:`submit`.
        cron: six fields, the first one seconds, as in "0 0 2 * * *": at two o'clock each night.
        name: of the recurring run; there must be none of that name.
        experiment: as for :func:`submit`.
        pipeline_root: as for :func:`submit`.
        namespace: as for :func:`submit`.
        service_account: as for :func:`submit`.

    Returns:
        ``recurring_run_id``, ``name``, ``cron``, ``pipeline``, ``experiment`` and ``url``, where a browser shows it.

    Raises:
        SettingsError: also for a cron of another form, and if there is a recurring run of that name.
        ClusterUnavailable, ClusterRefused: see :func:`submit`.
    """
    if len(cron.split()) != _CRON_FIELDS or not _CRON.fullmatch(cron):
        raise SettingsError([
            f"cron is {cron!r}; it must have six fields, seconds, minutes, hours, day of month, month and day of week, "
            'as in "0 0 2 * * *" for two o\'clock each night'
        ])  # fmt: skip
    compiled = read_definition(definition)
    cluster = Cluster(endpoint, namespace)
    asked = compiled.as_dict(), parameters, pipeline_root, service_account
    made = cluster.schedule(Submission(name, cluster.experiment(experiment), *asked), cron)
    return {
        "recurring_run_id": made, "name": name, "cron": cron, "pipeline": compiled.name, "experiment": experiment,
        "url": cluster.schedule_url(made),
    }  # fmt: skip


def wait(
    run_id: str,
    endpoint: str,
    namespace: str | None = None,
    on_state: Callable[[str], None] = lambda state: None,
    every: float = 5.0,
) -> dict[str, str]:
    """Wait until a run has ended.

    Args:
        run_id: as :func:`submit` returns it.
        endpoint: as for :func:`submit`.
        namespace: as for :func:`submit`.
        on_state: called with each new state of the run.
        every: seconds between two looks at it.

    Returns:
        ``state`` (SUCCEEDED, FAILED, CANCELED or SKIPPED) and ``error``, what KFP says went wrong, or "".

    Raises:
        ClusterUnavailable: if the cluster cannot be asked for long; the run itself may go on.
        ClusterRefused: if it does not let us ask, or does not know the run.
    """
    cluster = Cluster(endpoint, namespace)
    seen, lost = "", 0
    while True:
        try:
            state, error = cluster.state(run_id)
        except ClusterUnavailable as problem:
            lost += 1
            if lost >= _LOST:
                raise ClusterUnavailable(f"run {run_id} may go on, but {problem}") from None
        else:
            lost = 0
            if state != seen:
                on_state(state)
            if state in ENDED:
                return {"state": state, "error": error}
            seen = state
        time.sleep(every)


def _run_everything(compiled: Definition) -> None:
    """Switch every task's cache off, in nested graphs too; kfp's own ``enable_caching`` sees the outermost only."""
    for component in (compiled.pipeline.root, *compiled.pipeline.components.values()):
        for task in component.dag.tasks.values():
            task.caching_options.enable_cache = False
