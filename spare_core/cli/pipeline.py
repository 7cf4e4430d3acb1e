"""``spare run``, ``spare demo`` and ``spare submit``: a compiled pipeline here, or on a KFP cluster."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spare_core.cli.reporting import Json, print_result, reporting
from spare_core.errors import SpareError

if TYPE_CHECKING:
    from pipelines.local import LocalRun

Arguments = Annotated[list[str] | None, typer.Argument(metavar="key=value", help="the pipeline's parameters")]
PipelineFile = Annotated[Path | None, typer.Option("--file", "-f", help="compiled pipeline; default: SPARE's own")]
Output = Annotated[Path, typer.Option("--output", help="folder for results, registry and what can be taken again")]
DEMO = ("model=canvas", "erase=Neon Lines", "surrogate=Pencil Drawing", "seeds=1")


@reporting
def demo(output: Output = Path("spare-demo"), as_json: Json = False) -> None:
    """Run the whole pipeline on the built-in model: Neon Lines becomes Pencil Drawing, measured on 240 pictures."""
    _run(None, DEMO, output, as_json)


@reporting
def run(
    arguments: Arguments = None, file: PipelineFile = None, output: Output = Path("spare-run"), as_json: Json = False
) -> None:
    """Run a compiled pipeline here, through KFP's local runner. Asked the same again, it takes what is done."""
    _run(file, arguments or (), output, as_json)


def _run(file: Path | None, arguments: Sequence[str], output: Path, as_json: bool) -> None:
    from pipelines.definition import SPARE

    done = run_here(file or SPARE, arguments, output)
    print_result(report_of(done), as_json, "" if as_json else _summary(done))


def run_here(definition: Path, arguments: Sequence[str], output: Path) -> LocalRun:
    """Run a compiled pipeline, telling of its stages as they come."""
    try:
        from pipelines import local
    except ImportError as error:
        raise SpareError(f"{error}; pip install 'spare-unlearning[pipelines,server]' to run pipelines") from None
    from pipelines.definition import OWN
    from pipelines.parameters import parse

    values = parse(arguments, definition, checked_later=definition.resolve() in OWN)
    started = time.monotonic()

    def on_stage(stage: str, what: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {stage:9} {what}", file=sys.stderr, flush=True)

    return local.run(definition, values, output, on_stage)


def report_of(done: LocalRun) -> dict[str, Any]:
    """What a run came to, as JSON."""
    services = {
        name: value for name, value in done.environment.items() if name in ("MLFLOW_TRACKING_URI", "SPARE_STORE")
    }
    return {
        "run_id": done.run_id, "log": str(done.log), "services": services, "seconds": done.seconds,
        "results": done.results,
    }  # fmt: skip


def _summary(done: LocalRun) -> str:
    """Where everything is, and how to look further."""
    registered, promoted = done.results.get("register"), done.results.get("promote")
    lines = []
    if registered:
        evaluation = Path(registered["evaluation"])
        lines += [summary_of(evaluation), ""]
        alias = "champion" if promoted else "candidate"
        lines += [
            f"registered  version {registered['version']} of {registered['name']}, {alias}",
            f"adapter     {registered['adapter']}",
            f"evaluation  {evaluation / 'evaluation.json'}",
            f"pictures    {evaluation / 'contact_sheet.png'}",
        ]
    tracking = done.environment["MLFLOW_TRACKING_URI"]
    lines += [f"registry    {tracking}", f"log         {done.log}"]
    if registered:
        uri, prompt = f"models:/{registered['name']}@{alias}", next(iter(done.results.values()))["prompt"]
        lines += ["", "Look further:", *further(tracking, uri, prompt)]
    return "\n".join(lines)


def summary_of(evaluation: Path) -> str:
    """The figures of an evaluation directory."""
    from spare_core.evaluation.report import summary_table
    from spare_core.evaluation.report_files import read_report

    return summary_table(read_report(evaluation))


def further(tracking: str, uri: str, prompt: str) -> list[str]:
    """Commands for a shell: MLflow's pages, if it has no server, and a picture drawn with the adapter."""
    python = shlex.quote(sys.executable)
    draw = (
        f"import mlflow; model = mlflow.pyfunc.load_model({uri!r}); "
        f"open('picture.png', 'wb').write(model.predict([{prompt!r}])[0])"
    )
    ui = f"  {python} -m mlflow ui --backend-store-uri {shlex.quote(tracking)}"
    return [
        *([ui] if tracking.startswith("sqlite:") else [f"  {tracking}"]),
        f"  MLFLOW_TRACKING_URI={shlex.quote(tracking)} {python} -c {shlex.quote(draw)}",
    ]


@reporting
def submit(
    endpoint: Annotated[str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="URL of the KFP API server")],
    arguments: Arguments = None,
    file: PipelineFile = None,
    experiment: Annotated[str, typer.Option(help="created if there is none of that name")] = "spare",
    run_name: Annotated[str | None, typer.Option(help="default: the pipeline's name and the time")] = None,
    namespace: Annotated[str | None, typer.Option(help="on a cluster of several users: yours")] = None,
    service_account: Annotated[str | None, typer.Option(help="Kubernetes service account of the run")] = None,
    pipeline_root: Annotated[str | None, typer.Option(help="s3://bucket/prefix for the run's artifacts")] = None,
    cached: Annotated[bool, typer.Option("--cached/--no-cache", help="take results of earlier runs")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="until the run ends; exit 1 unless it succeeded")] = False,
    unless_running: Annotated[
        bool, typer.Option("--unless-running", help="start none while a run of the experiment goes on")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hand a compiled pipeline to a KFP cluster. The token comes from KFP_EXISTING_TOKEN."""
    from pipelines import submit as cluster
    from pipelines.cluster import SUCCEEDED
    from pipelines.definition import SPARE
    from pipelines.parameters import parse
    from spare_core.errors import SettingsError
    from spare_core.workflow.travelling import expansion_problems

    definition = file or SPARE
    values = parse(arguments or [], definition)
    if problems := expansion_problems(values):  # a task would see them replaced already
        raise SettingsError(problems)
    run = cluster.submit(
        definition, values, endpoint, experiment, run_name, pipeline_root, namespace, service_account, cached,
        unless_running,
    )  # fmt: skip
    text = f"{run['run_name']}: {run['run_id']}\n{run['url']}"
    if not run["started"]:
        print_result(run, as_json, f"nothing was started, this one goes on: {text}")
        return
    if wait:
        print(text, file=sys.stderr)  # before it ends: whoever stops waiting still knows the run
        run |= cluster.wait(run["run_id"], endpoint, namespace, lambda state: print(state, file=sys.stderr))
        text = f"{run['run_name']}: {run['state']}" + (f": {run['error']}" if run["error"] else "")
    print_result(run, as_json, text)
    if wait and run["state"] != SUCCEEDED:
        raise typer.Exit(1)
