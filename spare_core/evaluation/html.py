"""Pages that show a result without any file beside them: the KFP UI and MLflow display them as they are.

Every text comes from people or models and is escaped; pictures lie inside as base64.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spare_core.concepts.erasures import title_of
from spare_core.evaluation.findings import by_harm, by_presence
from spare_core.evaluation.report import profile_plot, summary_table
from spare_core.evaluation.report_files import MATRIX, SHEET, read_report

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;color:#1a1a1a;margin:2em;max-width:70em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}.erased{color:#b3261e}"
)


def evaluation_page(folder: Path) -> str:
    """The figures before and after, the contact sheet, and every concept of an evaluation directory, of each kind the
    worst first."""
    report = read_report(folder)
    title = f"{title_of(report['erased'])}: suppressed as measured by the judge {report['judge']['name']!r}"
    concepts = report["per_concept"]
    kinds = dict.fromkeys(row["kind"] for row in concepts)
    worst_first = [row for kind in kinds for row in (*by_presence(concepts, kind), *by_harm(concepts, [kind]))]
    rows = [
        [row["concept"], row["kind"], str(row["pictures"]), *(_share(row[side]) for side in ("before", "after"))]
        for row in worst_first
    ]
    gone = [bool(row["erased"]) for row in worst_first]
    body = [
        f"<pre>{html.escape(summary_table(report))}</pre>",
        _picture((folder / SHEET).read_bytes(), "before and after"),
        *([_picture((folder / MATRIX).read_bytes(), "what is left of each")] if (folder / MATRIX).is_file() else []),
        _table(["concept", "kind", "pictures", "accuracy before", "after"], rows, gone),
    ]
    return _page(title, body)


def profile_page(concept: str, profile: Mapping[str, Sequence[float]]) -> str:
    """When concept and surrogate differ, and when the training looks; ``profile`` as :func:`profile_plot` takes it."""
    return _page(f"When {concept} is decided", [_picture(profile_plot({concept: profile}), "timestep profile")])


def _share(accuracy: Mapping[str, Any] | None) -> str:
    return "" if accuracy is None else f"{accuracy['accuracy']:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    classes = ["", *(' class="erased"' if mark else "" for mark in marked)]
    return f"<table>{''.join(f'<tr{c}>{line}</tr>' for c, line in zip(classes, lines, strict=True))}</table>"


def _picture(png: bytes, what: str) -> str:
    return f'<p><img alt="{html.escape(what)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'


def _page(title: str, body: Sequence[str]) -> str:
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body><h1>{html.escape(title)}</h1>{''.join(body)}</body></html>\n"
