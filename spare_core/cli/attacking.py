"""``spare attack``: does what was erased stay gone?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spare_core.cli.options import AnyBase, Dtype, Model, OnDevice, Output
from spare_core.cli.reporting import Json, print_result, reporting


@reporting
def attack(
    model: Model,
    output: Output,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="adapter directory; repeatable, they are attacked together")
    ] = None,
    erased: Annotated[
        list[str] | None, typer.Option(help="an erased concept; repeatable; all that the adapters erase if not given")
    ] = None,
    budget: Annotated[str, typer.Option(help="how much the attacker spends: quick, standard or paper")] = "standard",
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="paraphrase, prompt, pictures, inversion, conditioning, latents, relearning or tampering; repeatable; "
            "all if not given",
        ),
    ] = None,
    phrase: Annotated[
        list[str] | None,
        typer.Option(help="another way to write the concept, for paraphrase: a description, a language; repeatable"),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(help="canvas, canvas160, unlearncanvas or a YAML file, local or s3://; else the model's own"),
    ] = "",
    evaluation: Annotated[
        Path | None, typer.Option(help="evaluation of these adapters that the figures are entered in, for the gate")
    ] = None,
    seed: Annotated[int, typer.Option(help="of all the attacker's chance", min=0, max=2**31 - 1)] = 1,
    dtype: Dtype = "auto",
    device: OnDevice = "auto",
    any_base: AnyBase = False,
    as_json: Json = False,
) -> None:
    """Try to bring erased concepts back, and say how often and at what cost; the base and a plain erasure beside it."""
    from spare_core.adapters.directory import load_adapters
    from spare_core.attacks.attack import attack as run
    from spare_core.attacks.attack import check_request, table
    from spare_core.attacks.evidence import check_entry, enter
    from spare_core.attacks.record import check_attack_output
    from spare_core.evaluation.attacked import ATTACKS
    from spare_core.evaluation.judges import load_judge
    from spare_core.evaluation.suite import load_suite, suite_of
    from spare_core.models.files import find_model
    from spare_core.models.loading import load_denoiser
    from spare_core.runs.progress import ProgressDisplay
    from spare_core.runs.stages import make_repeatable

    chosen = load_suite(suite_of(model, suite))
    check_attack_output(output)
    digest = find_model(model).digest()
    stored = load_adapters(adapter or [], None if any_base else digest, model)
    check_request(stored, chosen, erased or [], budget, attacks or ATTACKS, phrase or [])
    if evaluation is not None:
        check_entry(evaluation, digest, stored, chosen)
    make_repeatable()
    denoiser = load_denoiser(model, device, dtype)
    judge = load_judge(chosen, denoiser.device)
    with ProgressDisplay() as progress:
        report = run(
            denoiser, digest, stored, chosen, judge, erased or [], output, budget, attacks or ATTACKS, seed, progress,
            phrase or [],
        )  # fmt: skip
    if evaluation is not None:
        enter(evaluation, report)
    print_result(report, as_json, f"{table(report)}\n{output / 'attack.json'}")
