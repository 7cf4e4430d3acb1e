"""How well each erased concept stays suppressed while further ones join it or are withdrawn.

A report carries the ``history`` of its bundle: a row for each evaluation since the first, which says what was added and
withdrawn, and what was then measured of every concept erased. Row i and column j: how much of j is left after change i.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from spare_core.concepts.erasures import title_of
from spare_core.concepts.names import normalise
from spare_core.errors import InputError

_FIGURES: Final = (("residual", "residual (1: nothing erased)", "Reds"), ("ua", "UA (1: forgotten)", "Greens"))
_LABEL: Final = 28
_COLUMNS: Final = 24
_WORST: Final = 10
"""Of more concepts than fit side by side so many are shown, those that are left most, beside the mean of the others."""


def check_continues(before: Mapping[str, Any] | None, base_digest: str) -> None:
    """Refuse a report that nothing can go on from.

    Raises:
        InputError: if it is of another base model, or of the base model alone.
    """
    if before is None:
        return
    if before.get("base_digest") != base_digest:
        raise InputError(
            f"the evaluation before is of the base model {str(before.get('base_digest'))[:12]}…, not of "
            f"{base_digest[:12]}…; give one of this base, or none"
        )
    if not isinstance(before.get("history"), list):
        raise InputError("the evaluation before is of no adapter; give that of the bundle before it changed, or none")


def continued(before: Mapping[str, Any] | None, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The history of ``report``, which is the first or goes on from that of the report ``before``."""
    rows = [] if before is None else before["history"]
    seen = {normalise(row["concept"]): 1 - row["after"]["accuracy"] for row in report["per_concept"] if row["erased"]}
    concepts = {
        name: {"residual": residual, "ua": seen.get(normalise(name))} for name, residual in report["residuals"].items()
    }
    last = rows[-1]["concepts"] if rows else {}
    row = {
        "added": [name for name in concepts if name not in last],
        "withdrawn": [name for name in last if name not in concepts],
        "adapters": [adapter["sha256"] for adapter in report["adapters"]],
        "concepts": concepts,
    }
    return [*rows, row]


def rebounds(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each concept that was erased before the last change: its residual when it was added (``then``) and now, and
    what was changed since the last row."""
    *earlier, last = history
    found = []
    for name, now in last["concepts"].items():
        rows = []
        for row in reversed(earlier):
            if name not in row["concepts"]:
                break
            rows.append(row["concepts"][name])
        if rows:
            then = rows[-1]["residual"]
            found.append({"concept": name, "then": then, "now": now["residual"], "after": change(last)})
    return found


def change(row: Mapping[str, Any]) -> str:
    """What a row's evaluation was made after, for people."""
    done = {"adding": row["added"], "withdrawing": row["withdrawn"]}
    return " and ".join(f"{what} {title_of(names)}" for what, names in done.items() if names) or "no change"


def matrix_plot(history: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: residual and, where a judge was asked, UA, of each concept (columns) after each change (rows)."""
    history = shown(history)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in history for name in row["concepts"]))
    size = (2.0 + 0.55 * len(names), 1.6 + 0.4 * len(history))
    figure = Figure(figsize=(2 * size[0] + 2.5, size[1] + 1.4), dpi=110, layout="constrained")
    for axis, (key, title, colours) in zip(figure.subplots(1, len(_FIGURES)), _FIGURES, strict=True):
        cells = [[(row["concepts"].get(name) or {}).get(key) for name in names] for row in history]
        values = [[float("nan") if cell is None else cell for cell in line] for line in cells]
        axis.imshow(values, cmap=colours, vmin=0.0, vmax=1.0, aspect="auto")
        for y, line in enumerate(cells):
            for x, cell in enumerate(line):
                if cell is not None:
                    axis.text(x, y, f"{cell:.2f}", ha="center", va="center", fontsize=7,
                              color="white" if cell > 0.6 else "black")  # fmt: skip
        axis.set_xticks(range(len(names)), [_short(name) for name in names], rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(history)), [_short(change(row)) for row in history], fontsize=8)
        axis.set_title(title, loc="left", fontsize=9)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def shown(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``history`` with no more concepts than can be read: the ten of the last row with the highest residual, then the
    mean of all others of each row."""
    names = dict.fromkeys(name for row in history for name in row["concepts"])
    if len(names) <= _COLUMNS:
        return [dict(row) for row in history]
    last = history[-1]["concepts"]
    worst = sorted(last, key=lambda name: -last[name]["residual"])[:_WORST]
    rows = []
    for row in history:
        others = [figures for name, figures in row["concepts"].items() if name not in worst]
        concepts = {name: row["concepts"].get(name) for name in worst}
        concepts[f"mean of {len(names) - len(worst)} others"] = {
            key: sum(known) / len(known) if (known := [one[key] for one in others if one[key] is not None]) else None
            for key, *_ in _FIGURES
        }
        rows.append({**row, "concepts": concepts})
    return rows


def _short(text: str) -> str:
    """Names are people's: not read as mathematics, and of a bounded length."""
    text = text.replace("$", r"\$")
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
