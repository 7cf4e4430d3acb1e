"""``spare registry``: what is registered, what is champion, and moving that; MLFLOW_TRACKING_URI says where."""

from __future__ import annotations

import dataclasses
import getpass
from typing import Annotated, Any

import typer

from spare_core.cli.reporting import Json, print_result, reporting
from spare_core.evaluation.gate import DEFAULT, Policy
from spare_core.workflow.environment import POLICY

app = typer.Typer(
    name="registry",
    help="Adapters in MLflow: list and show them, move the champion, read the promotion log.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="registered model, e.g. spare.canvas.neon-lines")]
_STORE_HELP = "s3://bucket/prefix or folder that holds evidence and promotion log"
StoreUri = Annotated[str, typer.Option("--store", envvar="SPARE_STORE", help=_STORE_HELP)]
By = Annotated[str | None, typer.Option(help="who does it, for the log; default: the login name")]
PolicyFile = Annotated[
    str,
    typer.Option(
        "--policy", envvar=POLICY, help="what the gate asks for: 'default', 'lists' or a YAML file, here or in S3"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="past the gate's refusal; needs --reason, kept for ever")]
Reason = Annotated[str, typer.Option(help="why, for the log")]


@app.command("list")
@reporting
def list_(as_json: Json = False) -> None:
    """Every registered model of ours, with its aliases."""
    from spare_core.registry.views import list_models

    models = list_models()
    lines = [f"{model['name']}  {_aliases(model['aliases'])}  {model['concept'] or ''}" for model in models]
    print_result({"models": models}, as_json, "\n".join(lines) or "nothing is registered")


@app.command()
@reporting
def show(
    name: Name,
    store: Annotated[str | None, typer.Option("--store", envvar="SPARE_STORE", help=_STORE_HELP)] = None,
    as_json: Json = False,
) -> None:
    """A model's versions with figures and the gate's verdict; with --store, also whether the aliases are as logged."""
    from spare_core.registry.views import show_model
    from spare_core.store import open_store

    shown = show_model(name, None if store is None else open_store(store))
    lines = [f"{name}: {shown['concept']}", f"aliases: {_aliases(shown['aliases'])}"]
    lines += [_version_line(version) for version in shown["versions"]]
    lines += _remarks(shown) if store is not None else ["not compared with the promotion log: no --store"]
    print_result(shown, as_json, "\n".join(lines))


@app.command()
@reporting
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="number of the version", min=1)],
    store: StoreUri,
    policy: PolicyFile = DEFAULT,
    force: Force = False,
    reason: Reason = "",
    by: By = None,
    as_json: Json = False,
) -> None:
    """Make a version champion, if the gate lets it pass; the one until now becomes previous."""
    from spare_core.registry import promotions
    from spare_core.store import open_store

    asked = Policy.find(policy)
    _tell(promotions.promote(name, version, open_store(store), by or getpass.getuser(), asked, reason, force), as_json)


@app.command()
@reporting
def rollback(
    name: Name,
    store: StoreUri,
    policy: PolicyFile = DEFAULT,
    force: Force = False,
    reason: Reason = "",
    by: By = None,
    as_json: Json = False,
) -> None:
    """Let champion and previous change places, if the gate lets the previous one pass."""
    from spare_core.registry import promotions
    from spare_core.store import open_store

    asked = Policy.find(policy)
    _tell(promotions.rollback(name, open_store(store), by or getpass.getuser(), asked, reason, force), as_json)


@app.command()
@reporting
def history(
    name: Name,
    store: StoreUri,
    verify: Annotated[
        bool, typer.Option("--verify", help="only say whether all is in order; exit 1 also if aliases and log differ")
    ] = False,
    as_json: Json = False,
) -> None:
    """The promotion log, checked; exit 1 if it is damaged."""
    from spare_core.registry import views
    from spare_core.store import open_store

    if verify:
        proof = views.verify(name, open_store(store))
        whole = f"{proof['entries']} entries, whole up to {proof['head'] or 'the start'}"
        cited = f"{proof['documents']} cited verdict(s) as they were written"
        print_result(proof, as_json, f"{name}: {whole}; {cited}; the aliases are as logged")
        return
    found = views.history(name, open_store(store))
    lines = [entry["line"] for entry in found["entries"]] or [f"{name} was never promoted"]
    print_result(found, as_json, "\n".join([*lines, *_remarks(found)]))


def _tell(move: Any, as_json: bool) -> None:
    aliases = dataclasses.asdict(move.aliases)
    report = {
        "name": move.name, "kind": move.kind, "moved": move.moved, "aliases": aliases, "entry": move.entry,
        "forced": move.forced, "notes": list(move.notes),
    }  # fmt: skip
    done = f"{move.name}: {_aliases(aliases)}" + (f" (entry {move.entry} of the log)" if move.moved else "")
    forced = ["by force, past the gate; marked for ever"] if move.forced else []
    print_result(report, as_json, "\n".join([done, *forced, *move.notes]))


def _aliases(aliases: dict[str, Any]) -> str:
    return ", ".join(f"{alias} {version}" for alias, version in aliases.items() if version is not None) or "no alias"


def _version_line(version: dict[str, Any]) -> str:
    figures = " ".join(
        f"{name} {version[name]:.3g}" for name in ("ua.after", "ira.after", "cra.after") if name in version
    )
    forced = f", FORCED by {version['forced']}" if version["forced"] else ""
    return f"  version {version['version']}: gate {version['gate'] or 'not asked'}{forced}; {figures}".rstrip("; ")


def _remarks(shown: dict[str, Any]) -> list[str]:
    return [shown[name] for name in ("pending", "outside") if shown[name]]
