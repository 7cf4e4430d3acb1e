"""``spare submit``: hand a compiled pipeline to a KFP cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from spare_core.reporting import Json, print_result, reporting


@reporting
def submit(
    endpoint: Annotated[str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="URL of the KFP API server")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="the pipeline's parameters")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="compiled pipeline; default: SPARE's own")] = None,
    experiment: Annotated[str, typer.Option(help="created if there is none of that name")] = "spare",
    run_name: Annotated[str | None, typer.Option(help="default: the pipeline's name and the time")] = None,
    namespace: Annotated[str | None, typer.Option(help="on a cluster of several users: yours")] = None,
    service_account: Annotated[str | None, typer.Option(help="Kubernetes service account of the run")] = None,
    pipeline_root: Annotated[str | None, typer.Option(help="s3://bucket/prefix for the run's artifacts")] = None,
    cached: Annotated[bool, typer.Option("--cached/--no-cache", help="take results of earlier runs")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="until the run ends; exit 1 unless it succeeded")] = False,
    as_json: Json = False,
) -> None:
    """Hand a compiled pipeline to a KFP cluster. The token comes from KFP_EXISTING_TOKEN."""
    from pipelines import submit as cluster
    from pipelines.definition import SPARE
    from pipelines.parameters import parse

    definition = file or SPARE
    values = parse(arguments or [], definition)
    run = cluster.submit(
        definition, values, endpoint, experiment, run_name, pipeline_root, namespace, service_account, cached
    )
    text = f"{run['run_name']}: {run['run_id']}\n{run['url']}"
    if wait:
        print(text, file=sys.stderr)  # before it ends: whoever stops waiting still knows the run
        run |= cluster.wait(run["run_id"], endpoint, namespace, lambda state: print(state, file=sys.stderr))
        text = f"{run['run_name']}: {run['state']}" + (f": {run['error']}" if run["error"] else "")
    print_result(run, as_json, text)
    if wait and run["state"] != cluster.SUCCEEDED:
        raise typer.Exit(1)
