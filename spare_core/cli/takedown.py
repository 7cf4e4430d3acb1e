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

from spare_core.cli.reporting import Json, print_result, reporting
from spare_core.errors import InputError
from spare_core.files.addresses import is_s3

if TYPE_CHECKING:
    from spare_core.takedown.ledger import Ledger

app = typer.Typer(
    name="takedown", help="Takedown lists: check them, plan them, see what is late.", no_args_is_help=True
)

List_ = Annotated[str, typer.Argument(metavar="LIST", help=".yaml, .jsonl or .csv file, local or s3://")]
StoreUri = Annotated[
    str, typer.Option("--store", envvar="SPARE_STORE", help="s3://bucket/prefix or folder that holds the ledger")
]
SkipInvalid = Annotated[bool, typer.Option("--skip-invalid", help="go on without the bad rows, which are listed")]


@app.command()
@reporting
def validate(source: List_, skip_invalid: SkipInvalid = False, as_json: Json = False) -> None:
    """Check every row of a list, and what its rows say of each other; costs nothing."""
    from spare_core.takedown.conflicts import compare
    from spare_core.takedown.reading import read_list

    found = read_list(source)
    compared = compare(row.request for row in found.rows)
    bad = [*map(str, found.problems), *map(str, compared.conflicts)]
    lines = [
        f"{source}: {len(found.rows)} good rows, {len({problem.line for problem in found.problems})} bad ones",
        *bad,
        *(f"{again}: asks for the same as {first}, and is done with it" for again, first in compared.repeated.items()),
        *(f"{target}: taken back by {by}" for target, by in compared.withdrawn.items()),
    ]
    report = {
        "list": source, "good": len(found.rows), "problems": [problem._asdict() for problem in found.problems],
        "conflicts": [conflict._asdict() for conflict in compared.conflicts], "repeated": compared.repeated,
        "withdrawn": compared.withdrawn,
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
    skip_invalid: SkipInvalid = False,
    as_json: Json = False,
) -> None:
    """What would be done about a list, when, and why, given what the ledger knows; changes nothing."""
    from spare_core.takedown.planning import DEADLINES, read_deadlines
    from spare_core.takedown.planning import plan as make_plan
    from spare_core.takedown.reading import read_list

    days = read_deadlines(deadlines or DEADLINES)
    found = read_list(source)
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
    }  # fmt: skip
    lines = [step.told() for step in made.steps] + [str(one) for one in (*found.problems, *made.conflicts)]
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
    lines = [told_row(row) for row in rows]
    told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no request"
    lines.append(f"{told}; {len(late)} late; chain of {ledger.number} entries in order, head {report['head']}")
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


def told_row(row: Mapping[str, Any]) -> str:
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
