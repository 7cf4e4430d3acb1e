"""The ``spare`` command. Exit codes: 0 done, 2 bad input, 3 a gate refused, 130 stopped by Ctrl-C, 1 anything else."""

from __future__ import annotations

import atexit
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spare_core.cli.pipeline import demo, run, submit
from spare_core.cli.registry import app as registry
from spare_core.cli.reporting import Json, print_result, reporting
from spare_core.cli.takedown import app as takedown
from spare_core.cli.takedown_batches import run as run_takedowns
from spare_core.cli.takedown_batches import schedule as schedule_takedowns

if TYPE_CHECKING:
    from spare_core.method.settings import EraseSettings

app = typer.Typer(
    name="spare",
    help="Erase concepts from text-to-image diffusion models with small, reversible adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (demo, run, submit):
    app.command()(command)
app.add_typer(registry)
takedown.command("run")(run_takedowns)
takedown.command("schedule")(schedule_takedowns)
app.add_typer(takedown)

Model = Annotated[str, typer.Argument(help="'canvas', a local diffusers directory, s3://bucket/prefix, or a hub id")]
AnyBase = Annotated[bool, typer.Option("--any-base", help="accept an adapter that was trained for another base model")]
Output = Annotated[Path, typer.Option("--output", help="folder to write to")]


def main() -> None:
    """Run the command line."""
    # Imports make objects by the million, and all stay: Python's collector, looking through them again and again, takes
    # 0.4 s of a start and 0.9 s of an exit.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    # Read when the libraries are imported: their advice on optional packages is noise here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    app()


@app.command()
@reporting
def erase(
    model: Model,
    output: Output,
    concept: Annotated[
        list[str] | None, typer.Option("--erase", help="the concept to erase, as people write it; repeatable")
    ] = None,
    surrogate: Annotated[list[str] | None, typer.Option(help="what replaces it; one for each --erase, in turn")] = None,
    requests: Annotated[
        str | None, typer.Option(help="in place of those a YAML list of requests, local or s3://")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="style, object or person; Canvas finds it itself")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="a concept to hold fixed; repeatable")] = None,
    images: Annotated[str | None, typer.Option(help="folder of pictures of the concept; local or s3://")] = None,
    template: Annotated[str | None, typer.Option(help="prompt with {concept} and {context}")] = None,
    context: Annotated[list[str] | None, typer.Option(help="what fills {context}; repeatable")] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings, local or s3://; options win")] = None,
    mask: Annotated[str | None, typer.Option(help="text, module, channel, weight or none")] = None,
    density: Annotated[float | None, typer.Option(help="share of the weights that a saliency mask lets move")] = None,
    rank: Annotated[int | None, typer.Option(help="rank of the adapter")] = None,
    steps: Annotated[int | None, typer.Option(help="most training steps")] = None,
    lr: Annotated[str | None, typer.Option(help="peak learning rate; auto: found by trials")] = None,
    timesteps: Annotated[str | None, typer.Option(help="gap, uniform or window")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of all chance")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps")] = None,
    low_memory: Annotated[
        bool | None, typer.Option("--low-memory", help="gradient checkpointing, one side at a time")
    ] = None,
    as_json: Json = False,
) -> None:
    """Erase one concept, or several together: writes an adapter directory. Killed, it goes on with the same command."""
    from spare_core.concepts.lists import build_erasures
    from spare_core.runs.erase import erase as run
    from spare_core.runs.progress import ProgressDisplay

    options = {
        "mask": mask, "density": density, "rank": rank, "steps": steps, "lr": lr, "timesteps": timesteps, "seed": seed,
        "dtype": dtype, "device": device, "low_memory": low_memory,
    }  # fmt: skip
    settings = _settings(config, options)
    more = {"kind": kind, "keep": keep, "template": template, "contexts": context}
    erasures = build_erasures(model, _rows(concept or [], surrogate or [], requests, more))
    with ProgressDisplay() as progress:
        manifest = run(model, erasures, settings, output, images, progress)
    seconds = sum(manifest["seconds"].values())
    residuals = manifest["residuals"]
    told = [f"{part.concept} -> {part.surrogate}: residual {residuals[part.concept]:.3f}" for part in erasures]
    text = (
        "\n".join(told) + f", mean drift {manifest['mean_drift']:.4f} after {manifest['training']['steps']} steps in "
        f"{seconds:.0f} s\n"
        f"{manifest['mask']['moving']:,} of {manifest['mask']['weights']:,} target weights may move "
        f"({manifest['mask']['density']:.1%}, mask {manifest['mask']['kind']})\nadapter: {output}"
    )
    print_result(manifest, as_json, text)


@app.command()
@reporting
def compose(
    model: Model,
    adapter: Annotated[list[Path], typer.Option(help="adapter directory, of one concept or several; repeatable")],
    output: Output,
    without: Annotated[
        list[str] | None, typer.Option(help="a concept of theirs that is not to be erased any more; repeatable")
    ] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings, local or s3://; options win")] = None,
    rank: Annotated[int | None, typer.Option(help="rank of the bundle")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of all chance")] = None,
    as_json: Json = False,
) -> None:
    """Make one adapter that suppresses what several do: the best of three ways, by measurement. Killed, it goes on with
    the same command."""
    from spare_core.runs.compose import compose as run
    from spare_core.runs.progress import ProgressDisplay

    settings = _settings(config, {"rank": rank, "seed": seed})
    with ProgressDisplay() as progress:
        manifest = run(model, adapter, output, settings, progress, without or ())
    ways = manifest["composition"]
    lines = [
        f"{name:<13} rank {one['rank']:>3}, worst residual {max(one['residuals'].values()):.3f}, mean drift "
        f"{one['mean_drift']:.4f}, {one['seconds']:.1f} s{'  <- taken' if name == ways['chosen'] else ''}"
        for name, one in ways["candidates"].items()
    ]
    lines += [
        f"{name} is {'back' if one['back'] else 'NOT back'}: residual {one['residual']:.3f} (base 1)"
        for name, one in manifest["withdrawn"].items()
    ]
    concepts = ", ".join(request["concept"] for request in manifest["requests"])
    print_result(manifest, as_json, "\n".join([f"{concepts}:", *lines, f"adapter: {output}"]))


@app.command()
@reporting
def evaluate(
    model: Model,
    output: Output,
    erased: Annotated[
        list[str] | None, typer.Option(help="an erased concept; repeatable; all that the adapters erase if not given")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="style or object, where a suite has both of that name")] = None,
    suite: Annotated[str, typer.Option(help="canvas, unlearncanvas or a YAML file, local or s3://")] = "canvas",
    adapter: Annotated[list[Path] | None, typer.Option(help="adapter directory; repeatable, they add up")] = None,
    seeds: Annotated[int, typer.Option(help="draw only the first so many of the suite's seeds; 0: all", min=0)] = 0,
    objects_per_style: Annotated[int, typer.Option(help="draw only so many objects of each style; 0: all", min=0)] = 0,
    before: Annotated[
        Path | None, typer.Option(help="evaluation of the bundle before it changed: did anything come back?")
    ] = None,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Measure what was forgotten, what was kept, and the damage; draws pictures before and after."""
    from spare_core.adapters.directory import check_base, load_adapter
    from spare_core.evaluation.evaluate import evaluate as run
    from spare_core.evaluation.judges import load_judge
    from spare_core.evaluation.report import summary_table
    from spare_core.evaluation.report_files import check_report_output, read_report
    from spare_core.evaluation.suite import load_suite
    from spare_core.models.files import find_model
    from spare_core.models.loading import load_denoiser
    from spare_core.runs.progress import ProgressDisplay

    chosen = load_suite(suite).restricted(seeds, objects_per_style)
    check_report_output(output)
    earlier = None if before is None else read_report(before)
    stored = [load_adapter(folder) for folder in adapter or []]
    digest = find_model(model).digest()
    for one in stored if not any_base else []:
        check_base(one, digest, model)
    denoiser = load_denoiser(model)
    judge = load_judge(chosen, denoiser.device)
    with ProgressDisplay() as progress:
        report = run(denoiser, digest, stored, chosen, erased or [], kind, output, judge, progress, before=earlier)
    files = "\n".join(f"{output / name}" for name in ("evaluation.json", *report["files"]))
    print_result(report, as_json, f"{summary_table(report)}\n{files}")


@app.command()
@reporting
def generate(
    model: Model,
    prompt: Annotated[list[str], typer.Option(help="repeatable; one picture each")],
    output: Output,
    adapter: Annotated[list[Path] | None, typer.Option(help="adapter directory; repeatable, they add up")] = None,
    seed: Annotated[int, typer.Option(help="the same seed starts every picture", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, typer.Option(help="DDIM steps", min=1, max=999)] = 20,
    guidance: Annotated[float, typer.Option(help="guidance scale", min=0.0)] = 4.0,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Draw pictures, with or without adapters."""
    from spare_core.runs.generate import generate_pictures

    report = generate_pictures(model, prompt, output, adapter or [], seed, steps, guidance, any_base)
    print_result(report, as_json, "\n".join(f"{row['file']}: {row['prompt']}" for row in report["pictures"]))


@app.command()
@reporting
def export(
    adapter: Annotated[Path, typer.Argument(help="adapter directory")],
    format: Annotated[str, typer.Option(help="diffusers, kohya, sparse or merged")],
    output: Annotated[Path, typer.Option("--output", help="folder to write to; for kohya a .safetensors file")],
    model: Annotated[str | None, typer.Option(help="the base model; needed for merged")] = None,
    rank: Annotated[int | None, typer.Option(help="rank of a weight mask's approximation")] = None,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Write an adapter in a form that other tools read."""
    from spare_core.adapters.directory import load_adapter
    from spare_core.adapters.export import export_adapter

    report = export_adapter(load_adapter(adapter), format, output, model, rank, any_base)
    print_result(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))


@app.command()
@reporting
def verify(
    adapter: Annotated[Path, typer.Argument(help="adapter directory")],
    model: Annotated[str | None, typer.Option(help="also check against this base model")] = None,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Check an adapter's digests; with --model its base, its effect under stock diffusers, and that it comes off."""
    from spare_core.adapters.verify import verify_adapter

    report = verify_adapter(adapter, model, any_base)
    print_result(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))


def _rows(concepts: list[str], surrogates: list[str], requests: str | None, more: dict[str, Any]) -> list[Any]:
    """What is asked for, a row each: of the options, or of a file."""
    from spare_core.concepts.lists import read_rows
    from spare_core.errors import ConceptError, SettingsError

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


def _settings(config: str | None, options: dict[str, Any]) -> EraseSettings:
    """Those of a file, with the options that were given on top."""
    from spare_core.method.settings import EraseSettings

    given = {name: value for name, value in options.items() if value is not None}
    return EraseSettings.from_file(config, **given) if config else EraseSettings.from_mapping(given)
