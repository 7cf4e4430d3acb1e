"""``spare generate``, ``spare export`` and ``spare verify``: what is done with a finished adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spare_core.cli.options import AnyBase, Dtype, Model, OnDevice, Output
from spare_core.cli.reporting import Json, print_result, reporting


@reporting
def generate(
    model: Model,
    prompt: Annotated[list[str], typer.Option(help="repeatable; one picture each")],
    output: Output,
    adapter: Annotated[list[Path] | None, typer.Option(help="adapter directory; repeatable, they add up")] = None,
    seed: Annotated[int, typer.Option(help="the same seed starts every picture", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, typer.Option(help="DDIM steps", min=1, max=999)] = 20,
    guidance: Annotated[float, typer.Option(help="guidance scale", min=0.0)] = 4.0,
    dtype: Dtype = "auto",
    device: OnDevice = "auto",
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Draw pictures, with or without adapters."""
    from spare_core.runs.generate import generate_pictures

    report = generate_pictures(model, prompt, output, adapter or [], seed, steps, guidance, any_base, device, dtype)
    print_result(report, as_json, "\n".join(f"{row['file']}: {row['prompt']}" for row in report["pictures"]))


@reporting
def export(
    adapter: Annotated[Path, typer.Argument(help="adapter directory")],
    format: Annotated[str, typer.Option(help="diffusers, kohya, sparse or merged")],
    output: Annotated[Path, typer.Option("--output", help="folder to write to; for kohya a .safetensors file")],
    model: Annotated[
        str | None, typer.Option(help="the base model; needed for merged; for kohya it draws a preview beside the file")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="rank of a weight mask's approximation")] = None,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Write an adapter in a form that other tools read."""
    from spare_core.adapters.directory import load_adapter
    from spare_core.adapters.export import check_export, export_adapter

    stored = load_adapter(adapter)
    check_export(stored, format, output, model, rank)
    preview = None
    if format == "kohya" and model:
        from spare_core.runs.preview import Preview

        preview = Preview(stored, output, model, any_base)
    report = export_adapter(stored, format, output, model, rank, any_base)
    report |= preview.write() if preview else {}
    print_result(report, as_json, "\n".join(f"{name}: {value}" for name, value in report.items()))


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
