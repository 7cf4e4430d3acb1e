"""``spare evaluate``: what was forgotten, what was kept, and the damage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spare_core.cli.options import AnyBase, Dtype, Model, OnDevice, Output
from spare_core.cli.reporting import Json, print_result, reporting


@reporting
def evaluate(
    model: Model,
    output: Output,
    erased: Annotated[
        list[str] | None, typer.Option(help="an erased concept; repeatable; all that the adapters erase if not given")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="style or object, where a suite has both of that name")] = None,
    suite: Annotated[
        str,
        typer.Option(help="canvas, canvas160, unlearncanvas or a YAML file, local or s3://; else the model's own"),
    ] = "",
    adapter: Annotated[list[Path] | None, typer.Option(help="adapter directory; repeatable, they add up")] = None,
    seeds: Annotated[
        int, typer.Option(help="draw only the first so many of the seeds; 0: as the suite says", min=0)
    ] = 0,
    objects_per_style: Annotated[
        int, typer.Option(help="draw only so many objects a style; 0: as the suite says", min=0)
    ] = 0,
    before: Annotated[
        Path | None, typer.Option(help="evaluation of the bundle before it changed: did anything come back?")
    ] = None,
    dtype: Dtype = "auto",
    device: OnDevice = "auto",
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Measure what was forgotten, what was kept, and the damage; draws pictures before and after."""
    from spare_core.adapters.directory import load_adapters
    from spare_core.evaluation.evaluate import evaluate as run
    from spare_core.evaluation.judges import load_judge
    from spare_core.evaluation.report import summary_table
    from spare_core.evaluation.report_files import check_report_output, read_report
    from spare_core.evaluation.suite import load_suite, suite_of
    from spare_core.models.files import find_model
    from spare_core.models.loading import load_denoiser
    from spare_core.runs.progress import ProgressDisplay

    chosen = load_suite(suite_of(model, suite)).restricted(seeds, objects_per_style)
    check_report_output(output)
    earlier = None if before is None else read_report(before)
    digest = find_model(model).digest()
    stored = load_adapters(adapter or [], None if any_base else digest, model)
    denoiser = load_denoiser(model, device, dtype)
    judge = load_judge(chosen, denoiser.device)
    with ProgressDisplay() as progress:
        report = run(denoiser, digest, stored, chosen, erased or [], kind, output, judge, progress, before=earlier)
    files = "\n".join(f"{output / name}" for name in ("evaluation.json", *report["files"]))
    print_result(report, as_json, f"{summary_table(report)}\n{files}")
