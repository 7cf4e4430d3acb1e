"""``spare takedown run`` and ``spare takedown schedule``: the batch pipeline here, or on a cluster again and again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spare_core.cli.pipeline import Arguments, report_of, run_here
from spare_core.cli.reporting import Json, print_result, reporting
from spare_core.cli.takedown import absolute, told_row
from spare_core.errors import InputError
from spare_core.workflow.environment import STORE

if TYPE_CHECKING:
    from pipelines.local import LocalRun

Output = Annotated[Path, typer.Option("--output", help="folder for results, registry, ledger and what can be taken")]


@reporting
def run(
    source: Annotated[str, typer.Argument(metavar="LIST", help="a list or a folder of lists; '' for open requests")],
    arguments: Arguments = None,
    output: Output = Path("spare-takedown"),
    store: Annotated[
        str | None,
        typer.Option(
            envvar="SPARE_STORE", help="s3://bucket/prefix or folder that holds the ledger; default: in --output"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Work through a list here: erase what is open, bundle it, measure and promote; the same again does nothing twice.

    Takes the parameters of pipelines/takedown.yaml; model is canvas unless you say otherwise. Exits 1 if a request
    failed or is late.
    """
    from pipelines.definition import TAKEDOWN

    if store:
        os.environ[STORE] = absolute(store)
    given = list(arguments or ())
    if not any(argument.startswith("model=") for argument in given):
        given.append("model=canvas")
    done = run_here(TAKEDOWN, [f"requested={source}", *given], output)
    rows = standings(done)
    print_result({**report_of(done), "requests": rows}, as_json, "" if as_json else _summary(done, rows))
    if any(row["late"] or row["state"] == "failed" for row in rows):
        raise typer.Exit(1)


@reporting
def schedule(
    source: Annotated[str, typer.Argument(metavar="LIST", help="s3:// address of a list, or of a folder of lists")],
    endpoint: Annotated[str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="URL of the KFP API server")],
    cron: Annotated[str, typer.Option(help='six fields, seconds first: "0 0 2 * * *" is two o\'clock each night')],
    arguments: Arguments = None,
    name: Annotated[str, typer.Option(help="of the recurring run")] = "spare-takedowns",
    experiment: Annotated[str, typer.Option(help="created if there is none of that name")] = "spare",
    namespace: Annotated[str | None, typer.Option(help="on a cluster of several users: yours")] = None,
    service_account: Annotated[str | None, typer.Option(help="Kubernetes service account of the runs")] = None,
    pipeline_root: Annotated[str | None, typer.Option(help="s3://bucket/prefix for the runs' artifacts")] = None,
    as_json: Json = False,
) -> None:
    """Have a cluster work through lists again and again: one run at a time, none for times that were missed.

    Takes the parameters of pipelines/takedown.yaml, of which model is needed. The token comes from KFP_EXISTING_TOKEN.
    """
    from pipelines import submit as cluster
    from pipelines.definition import TAKEDOWN
    from pipelines.parameters import parse
    from spare_core.files.addresses import is_s3

    if not is_s3(source):
        raise InputError(f"{source!r} is no s3:// address; the cluster's tasks cannot read a file that lies here")
    values = parse([f"requested={source}", *(arguments or ())], TAKEDOWN)
    made = cluster.schedule(
        TAKEDOWN, values, endpoint, cron, name, experiment, pipeline_root, namespace, service_account
    )
    print_result(made, as_json, f"{made['name']} ({made['cron']}): {made['recurring_run_id']}\n{made['url']}")


def standings(done: LocalRun) -> list[dict[str, Any]]:
    """Every request of the ledger that the run worked with, by deadline."""
    from datetime import UTC, datetime, timedelta

    from spare_core.store import open_store
    from spare_core.takedown.ledger import Ledger
    from spare_core.takedown.planning import overview

    ledger = Ledger(open_store(done.environment[STORE]), "reader")
    return overview(ledger, datetime.now(UTC), timedelta(0))


def _summary(done: LocalRun, rows: list[dict[str, Any]]) -> str:
    """What became of each request, what the champion is, and where everything lies."""
    lines = [f"left out    {line}" for line in done.results["plan"]["left_out"]]
    lines += [told_row(row) for row in rows]
    registered, promoted = done.results.get("register"), done.results.get("promote")
    if registered:
        alias = "champion" if promoted else "candidate"
        lines += ["", f"bundle      version {registered['version']} of {registered['name']}, {alias}",
                  f"evaluation  {Path(registered['evaluation']) / 'evaluation.json'}"]  # fmt: skip
    elif busy := done.results["gather"].get("busy"):
        lines += ["", f"no bundle: {busy}; run again after that"]
    if no_room := done.results["gather"]["no_room"]:
        lines += ["", f"no room in the bundle for {', '.join(no_room)}: make one of a higher rank under another name"]
    store, tracking = (done.environment[name] for name in ("SPARE_STORE", "MLFLOW_TRACKING_URI"))
    lines += [f"registry    {tracking}", f"store       {store}", f"ledger      head {done.results['close']['head']}",
              f"log         {done.log}"]  # fmt: skip
    return "\n".join(lines)
