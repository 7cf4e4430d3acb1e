"""``spare takedown``: lists of what must come out of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from spare_core.reporting import Json, print_result, reporting

app = typer.Typer(name="takedown", help="Takedown lists: check them.", no_args_is_help=True)

List_ = Annotated[str, typer.Argument(metavar="LIST", help=".yaml, .jsonl or .csv file, local or s3://")]
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
