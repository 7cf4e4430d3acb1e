"""``spare erase`` and ``spare compose``: from concepts to an adapter, from adapters to one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from spare_core.cli.options import Config, Model, Output, number, read_settings, setting
from spare_core.cli.reporting import Json, print_result, reporting
from spare_core.errors import ConceptError, SettingsError

WHAT: Final = "What to erase"
METHOD: Final = "The method"
EXAMPLES: Final = "Examples"
MACHINE: Final = "The machine"
_LISTED: Final = 10
"""Concepts whose residuals are printed: of more, the worst."""


@reporting
def erase(
    model: Model,
    output: Output,
    concept: Annotated[
        list[str] | None,
        typer.Option("--erase", help="the concept to erase, as people write it; repeatable", rich_help_panel=WHAT),
    ] = None,
    surrogate: Annotated[
        list[str] | None, typer.Option(help="what replaces it; one for each --erase, in turn", rich_help_panel=WHAT)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="style, object or person; a built-in model finds it itself", rich_help_panel=WHAT),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="a concept to hold fixed, in place of the kind's everyday ones; repeatable", rich_help_panel=WHAT
        ),
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(help="in place of all those a YAML list of requests, local or s3://", rich_help_panel=WHAT),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="solve: in closed form, trained where that is not enough; paper: SPARE's own, saliency, masked LoRA "
            "and self-distillation; both: one after the other; robust: the last against an adversary, harder to undo",
            show_default="solve",
            rich_help_panel=METHOD,
        ),
    ] = None,
    mask: Annotated[str | None, setting("mask", METHOD)] = None,
    density: Annotated[float | None, setting("density", METHOD)] = None,
    rank: Annotated[str | None, setting("rank", METHOD)] = None,
    steps: Annotated[int | None, setting("steps", METHOD)] = None,
    lr: Annotated[str | None, setting("lr", METHOD)] = None,
    timesteps: Annotated[str | None, setting("timesteps", METHOD)] = None,
    seed: Annotated[int | None, setting("seed", METHOD)] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="any other setting, NAME=VALUE; repeatable", rich_help_panel=METHOD),
    ] = None,
    config: Config = None,
    images: Annotated[
        str | None,
        typer.Option(help="folder of pictures of the concept; local or s3://", rich_help_panel=EXAMPLES),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="prompt with {concept} and {context}", rich_help_panel=EXAMPLES)
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(help="what fills {context}; repeatable", rich_help_panel=EXAMPLES)
    ] = None,
    dtype: Annotated[str | None, setting("dtype", MACHINE)] = None,
    device: Annotated[str | None, setting("device", MACHINE)] = None,
    low_memory: Annotated[bool | None, setting("low_memory", MACHINE, "--low-memory")] = None,
    as_json: Json = False,
) -> None:
    """Erase one concept, or several together: writes an adapter directory. Killed, it goes on with the same command.

    Example: spare erase canvas --erase "Neon Lines" --surrogate Photo --output out/neon
    """
    from spare_core.checks import Collected
    from spare_core.concepts.lists import build_erasures
    from spare_core.concepts.names import names_within
    from spare_core.models.files import check_source

    options = {
        "method": method, "mask": mask, "density": density, "rank": number(rank), "steps": steps, "lr": lr,
        "timesteps": timesteps, "seed": seed,
        "dtype": dtype, "device": device, "low_memory": low_memory,
    }  # fmt: skip
    asked = {"kind": kind, "keep": keep, "template": template, "contexts": context}
    found = Collected([], set())
    found.attempt(lambda: check_source(model))
    settings = found.attempt(lambda: read_settings(config, options, more or ()))
    erasures = found.attempt(lambda: build_erasures(model, _rows(concept or [], surrogate or [], requests, asked)))
    if settings is None or erasures is None or found.problems:
        raise SettingsError(found.problems)
    for text in (name for part in erasures for name in part.names):
        if several := names_within(text):
            each = ", ".join(map(repr, several))
            typer.echo(f"look again: {text!r} is taken as one name; if it is {each}, give each an --erase", err=True)

    from spare_core.runs.erase import erase as run  # with torch, seconds: only for what may work
    from spare_core.runs.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        manifest = run(model, erasures, settings, output, images, progress)
    seconds = sum(manifest["seconds"].values())
    residuals = manifest["residuals"]
    worst = sorted(erasures, key=lambda part: -residuals[part.concept])[:_LISTED]
    parts = worst if len(erasures) > _LISTED else erasures
    lines = [f"{part.concept} -> {part.surrogate}: residual {residuals[part.concept]:.3f}" for part in parts]
    if len(erasures) > _LISTED:
        lines.append(f"these are the worst {_LISTED} of {len(erasures)}: residual of all {manifest['residual']:.3f}")
    left_out = [f"\nnot kept: {text!r}, which mentions {name!r}" for text, name in manifest["left_out"].items()]
    left_out[:0] = [f"\n{line}" for line in _left(manifest)]
    text = (
        "\n".join(lines) + f", mean drift {manifest['mean_drift']:.4f} after {manifest['training']['steps']} steps in "
        f"{seconds:.0f} s\n"
        f"{manifest['mask']['moving']:,} of {manifest['mask']['weights']:,} target weights may move "
        f"({manifest['mask']['density']:.1%}, mask {manifest['mask']['kind']})"
        f"{''.join(left_out)}\nadapter: {output}"
    )
    print_result(manifest, as_json, text)


@reporting
def compose(
    model: Model,
    adapter: Annotated[list[Path], typer.Option(help="adapter directory, of one concept or several; repeatable")],
    output: Output,
    without: Annotated[
        list[str] | None, typer.Option(help="a concept of theirs that is not to be erased any more; repeatable")
    ] = None,
    rank: Annotated[str | None, setting("rank", METHOD)] = None,
    seed: Annotated[int | None, setting("seed", METHOD)] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make one adapter that suppresses what several do: the best of three ways, by measurement. Killed, it goes on with
    the same command."""
    from spare_core.runs.compose import compose as run
    from spare_core.runs.progress import ProgressDisplay

    settings = read_settings(config, {"rank": number(rank), "seed": seed})
    with ProgressDisplay() as progress:
        manifest = run(model, adapter, output, settings, progress, without or ())
    ways = manifest["composition"]
    lines = [
        f"{name:<13} rank {one['rank']:>3}, worst residual {max(one['residuals'].values()):.3f}, mean drift "
        f"{one['mean_drift']:.4f}, {one['seconds']:.1f} s{'  <- taken' if name == ways['chosen'] else ''}"
        for name, one in ways["candidates"].items()
    ]
    lines += [
        f"{name} is {'back' if one['back'] else 'NOT back'}: {one['moved']:.3f} from the base model, 1 being its "
        "distance to its surrogate"
        for name, one in manifest["withdrawn"].items()
    ]
    lines += _left(manifest)
    if ways.get("grown_from_rank"):  # earlier releases refused to grow
        lines.append(
            f"rank {manifest['settings']['rank']}, it was {ways['grown_from_rank']}: a process that serves a bundle of "
            "that rank cannot swap this one in; start it anew"
        )
    concepts = ", ".join(request["concept"] for request in manifest["requests"])
    print_result(manifest, as_json, "\n".join([f"{concepts}:", *lines, f"adapter: {output}"]))


def _left(manifest: dict[str, Any]) -> list[str]:
    """What a result says of names that it does not erase; earlier releases wrote none that left any."""
    left = ", ".join(f"{name} ({residual:.2f})" for name, residual in manifest.get("left", {}).items())
    return [f"NOT erased: {left}; erase them by themselves, or name nearer surrogates"] if left else []


def _rows(concepts: list[str], surrogates: list[str], requests: str | None, more: dict[str, Any]) -> list[Any]:
    """What is asked for, a row each: of the options, or of a file."""
    from spare_core.concepts.lists import read_rows

    given = {name: value for name, value in more.items() if value}
    if requests is not None:
        if concepts or surrogates or given:
            raise SettingsError(["--requests says it all; leave out --erase, --surrogate and what belongs to them"])
        return read_rows(requests)
    if not concepts:
        raise ConceptError("there is nothing to erase; give --erase and --surrogate, or --requests FILE.yaml")
    if len(concepts) != len(surrogates):
        raise ConceptError(
            f"{len(concepts)} concepts and {len(surrogates)} surrogates are given; give one --surrogate "
            "for each --erase, in turn"
        )
    return [{"concept": c, "surrogate": s, **given} for c, s in zip(concepts, surrogates, strict=True)]
