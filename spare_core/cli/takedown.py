"""``spare takedown``: lists of what must come out of a model."""

from __future__ import annotations

import getpass
import os
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spare_core.cli.pipeline import Arguments, report_of, run_here
from spare_core.cli.reporting import Json, print_result, reporting
from spare_core.errors import InputError
from spare_core.files.addresses import is_s3
from spare_core.workflow.environment import STORE

if TYPE_CHECKING:
    from pipelines.local import LocalRun
    from spare_core.takedown.ledger import Ledger

app = typer.Typer(
    name="takedown", help="Takedown lists: check them, plan them, see what is late.", no_args_is_help=True
)

List_ = Annotated[
    str,
    typer.Argument(metavar="LIST", help="YAML, JSON, JSON lines or CSV, or a folder of them; local or s3://"),
]
StoreUri = Annotated[
    str, typer.Option("--store", envvar="SPARE_STORE", help="s3://bucket/prefix or folder that holds the ledger")
]
Zone = Annotated[
    str, typer.Option(help="time zone of days and of times that name none, as in Europe/Berlin", show_default="UTC")
]
SkipInvalid = Annotated[bool, typer.Option("--skip-invalid", help="go on without the bad rows, which are listed")]


Output = Annotated[Path, typer.Option("--output", help="folder for results, registry, ledger and what can be taken")]


@app.command()
@reporting
def validate(source: List_, zone: Zone = "", skip_invalid: SkipInvalid = False, as_json: Json = False) -> None:
    """Check every row of a list, and what its rows say of each other; costs nothing."""
    from spare_core.takedown.conflicts import compare
    from spare_core.takedown.doubts import doubts
    from spare_core.takedown.reading import read_list
    from spare_core.takedown.times import read_zone

    found = read_list(source, read_zone(zone))
    remarks = doubts(found, datetime.now(UTC))
    compared = compare(row.request for row in found.rows)
    bad = [*map(str, found.problems), *map(str, compared.conflicts)]
    lines = [
        f"{source}: {len(found.rows)} good rows, {len({problem.line for problem in found.problems})} bad ones",
        *bad,
        *(f"{again}: asks for the same as {first}, and is done with it" for again, first in compared.repeated.items()),
        *(f"{target}: taken back by {by}" for target, by in compared.withdrawn.items()),
        *(f"look again: {one}" for one in remarks),
    ]
    report = {
        "list": source, "good": len(found.rows), "problems": [problem._asdict() for problem in found.problems],
        "conflicts": [conflict._asdict() for conflict in compared.conflicts], "repeated": compared.repeated,
        "withdrawn": compared.withdrawn, "remarks": [one._asdict() for one in remarks],
    }  # fmt: skip
    print_result(report, as_json, "\n".join(lines))
    if compared.conflicts or (found.problems and not skip_invalid):
        raise typer.Exit(2)


@app.command()
@reporting
def plan(
    source: List_,
    store: StoreUri,
    deadlines: Annotated[str | None, typer.Option(help="YAML file of days by regime; default: SPARE's own")] = None,
    zone: Zone = "",
    skip_invalid: SkipInvalid = False,
    as_json: Json = False,
) -> None:
    """What would be done about a list, when, and why, given what the ledger knows; changes nothing."""
    from spare_core.takedown.doubts import doubts
    from spare_core.takedown.planning import DEADLINES, read_deadlines
    from spare_core.takedown.planning import plan as make_plan
    from spare_core.takedown.reading import read_list
    from spare_core.takedown.times import read_zone

    days = read_deadlines(deadlines or DEADLINES)
    found = read_list(source, read_zone(zone))
    remarks = doubts(found, datetime.now(UTC))
    if found.problems and not skip_invalid:
        raise InputError("; ".join(map(str, found.problems)))
    made = make_plan([row.request for row in found.rows], _ledger(store), days)
    report = {
        "list": source, "problems": [problem._asdict() for problem in found.problems],
        "conflicts": [conflict._asdict() for conflict in made.conflicts],
        "steps": [
            {"request_id": step.request.request_id, "action": step.action, "due_at": step.due_at.isoformat(),
             "reason": step.reason} for step in made.steps
        ],
        "remarks": [one._asdict() for one in remarks],
    }  # fmt: skip
    lines = [step.as_line() for step in made.steps] + [str(one) for one in (*found.problems, *made.conflicts)]
    lines += [f"look again: {one}" for one in remarks]
    print_result(report, as_json, "\n".join(lines))
    if made.conflicts:
        raise typer.Exit(2)


@app.command()
@reporting
def status(
    store: StoreUri,
    soon: Annotated[float, typer.Option(help="what is due within so many days is about to be late", min=0.0)] = 2.0,
    head: Annotated[str | None, typer.Option(help="NUMBER:SHA256 noted earlier; the ledger must still hold it")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="also compare every entry with the pack it is in")] = False,
    as_json: Json = False,
) -> None:
    """Every request of the ledger by deadline, with the chain checked; exit 1 if one is late or failed.

    With MLFLOW_TRACKING_URI set, the chain must also still hold the last entry that MLflow remembers.
    """
    from spare_core.takedown.planning import overview

    ledger = _ledger(store)
    if head is not None:
        number, _, sha256 = head.partition(":")
        if not (number.isascii() and number.isdigit() and sha256):
            raise InputError(f"--head is {head!r}; it must be NUMBER:SHA256, as this command prints it")
        ledger.check_head(int(number), sha256)
    name, _ = ledger.about
    remembered = None
    if name and os.environ.get("MLFLOW_TRACKING_URI"):
        from spare_core.registry.ledger_head import remembered_head

        remembered = remembered_head(name)
        if remembered:
            ledger.check_head(*remembered)
    if deep:
        ledger.check_packed()
    rows = overview(ledger, datetime.now(UTC), timedelta(days=soon))
    counts = dict(Counter(row["state"] for row in rows))
    late, failed = [row for row in rows if row["late"]], [row for row in rows if row["state"] == "failed"]
    report = {
        "entries": ledger.number, "head": f"{ledger.number}:{ledger.sha256}",
        "remembered": remembered[0] if remembered else None,
        "counts": counts, "late": len(late),
        "soon": sum(row["soon"] for row in rows), "failed": len(failed), "requests": rows,
    }  # fmt: skip
    lines = [row_line(row) for row in rows]
    states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no request"
    lines.append(f"{states}; {len(late)} late; chain of {ledger.number} entries in order, head {report['head']}")
    if remembered:
        lines.append(f"entry {remembered[0]}, which MLflow remembers, is there as it was")
    print_result(report, as_json, "\n".join(lines))
    if late or failed:
        raise typer.Exit(1)


@app.command()
@reporting
def metrics(
    store: StoreUri,
    port: Annotated[
        int | None, typer.Option(help="serve them there for ever; default: print them once", min=1, max=65535)
    ] = None,
    host: Annotated[str, typer.Option(help="address to serve on")] = "127.0.0.1",
    every: Annotated[float, typer.Option(help="seconds between two looks at the store", min=1.0)] = 60.0,
) -> None:
    """What is due, late and failed, and whether ledger and promotion logs are whole, for Prometheus; only reads."""
    from spare_core.store import open_store
    from spare_core.takedown.monitoring import Watch

    watch = Watch(open_store(absolute(store)))
    watch.look()
    if port is None:
        print(watch.text(), end="")
        return
    try:
        watch.follow(host, port, every)
    except OSError as error:
        raise InputError(f"cannot serve on {host}:{port}: {error.strerror}; give another --port") from None


def row_line(row: Mapping[str, Any]) -> str:
    """One request of the overview, for people."""
    mark = "LATE" if row["late"] else "soon" if row["soon"] else ""
    what = repr(row["concept"]) if row["concept"] else "counter-notice"
    reason = f"; {' '.join(row['reason'].split())}" if row["reason"] else ""
    return f"{row['due_at'][:16]}Z  {mark:<4}  {row['state']:<10}  {row['request_id']}: {what}{reason}"


def absolute(store: str) -> str:
    """A store's address, which may be a folder as people name it: from where they stand."""
    return store if is_s3(store) else str(Path(store).absolute())


def _ledger(store: str) -> Ledger:
    from spare_core.store import open_store
    from spare_core.takedown.ledger import Ledger

    opened = open_store(absolute(store))
    opened.check()
    return Ledger(opened, getpass.getuser())


@app.command()
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
    print_result({**report_of(done), "requests": rows}, as_json, "" if as_json else _batch_summary(done, rows))
    if any(row["late"] or row["state"] == "failed" for row in rows):
        raise typer.Exit(1)


@app.command()
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


def _batch_summary(done: LocalRun, rows: list[dict[str, Any]]) -> str:
    """What became of each request, what the champion is, and where everything lies."""
    lines = [f"left out    {line}" for line in done.results["plan"]["left_out"]]
    lines += [row_line(row) for row in rows]
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
