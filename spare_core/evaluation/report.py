"""What a person looks at: before and after side by side, the timestep profile, and a short table."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spare_core.concepts.erasures import title_of
from spare_core.evaluation.attacked import attack_lines
from spare_core.evaluation.grid import GridResult
from spare_core.evaluation.metrics import other
from spare_core.evaluation.suite import Domain, Suite

CONTEXTS: Final = 4
"""Pictures of each concept on the sheet."""
ERASED_ROWS: Final = 10
KEPT_ROWS: Final = 5
"""Erased concepts, and surrogates and kept ones, on the sheet."""
_TILE: Final = 128
_GAP: Final = 6
_LABELS: Final = 150
"""Width of the column with the concepts' names."""
_CAPTION: Final = 18
_HEADER: Final = 52
_INK, _PAPER, _RED, _GREEN, _GREY = "#1a1a1a", "#ffffff", "#b3261e", "#1b6e3c", "#5f6368"


class SheetRow(NamedTuple):
    """One concept on the sheet: its name, "erased" or what else it is, and rows of the grid with their captions."""

    label: str
    note: str
    pictures: tuple[int, ...]
    captions: tuple[str, ...]


def sheet_rows(
    grid: GridResult, suite: Suite, erased: Sequence[int], kind: Domain, surrogates: Sequence[int], worst: Sequence[int]
) -> list[SheetRow]:
    """The first ten erased concepts, five surrogates, then five kept ones in the order of ``worst``; each in the same
    contexts where the grid has them."""
    column, context = grid.outcomes.column(kind).prompted, grid.outcomes.column(other(kind)).prompted
    notes = dict.fromkeys(erased[:ERASED_ROWS], "erased")
    notes |= dict.fromkeys([concept for concept in surrogates if concept not in erased][:KEPT_ROWS], "surrogate")
    kept = [concept for concept in worst if concept not in {*notes, *erased}][:KEPT_ROWS]
    notes |= dict.fromkeys(kept, "kept")
    rows = []
    for concept, note in notes.items():
        drawn = ((column == concept) & (grid.seeds == grid.seeds[0])).nonzero().flatten()
        if len(drawn) == 0:  # a surrogate that is not in a part of a suite
            continue
        spread = torch.linspace(0, len(drawn) - 1, min(CONTEXTS, len(drawn))).round().long()
        pictures = drawn[spread].tolist()
        captions = tuple(suite.names(other(kind))[int(context[row])] for row in pictures)
        rows.append(SheetRow(suite.names(kind)[concept], note, tuple(pictures), captions))
    return rows


def contact_sheet(before: Tensor, after: Tensor | None, rows: Sequence[SheetRow], title: str) -> bytes:
    """PNG of ``rows``, each picture before and after side by side; thumbnails uint8 ``(N, h, w, 3)``."""
    columns = {"before": before} | ({} if after is None else {"after": after})
    pair = len(columns) * (_TILE + 2) + _GAP
    width = _LABELS + pair * max(len(row.pictures) for row in rows) + _GAP
    sheet = Image.new("RGB", (width, _HEADER + len(rows) * (_TILE + _CAPTION + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    plain, bold = ImageFont.load_default(size=13), ImageFont.load_default(size=16)
    draw.text((_GAP, _GAP), title, _INK, bold)
    for y, row in enumerate(rows):
        top = _HEADER + y * (_TILE + _CAPTION + _GAP)
        _label(draw, row, top + _CAPTION + 8, bold, plain)
        for x, (picture, caption) in enumerate(zip(row.pictures, row.captions, strict=True)):
            left = _LABELS + x * pair
            draw.text((left, top), _fitted(draw, caption, plain, pair - _GAP), _GREY, plain)
            for i, (name, thumbnails) in enumerate(columns.items()):
                corner = (left + i * (_TILE + 2), top + _CAPTION)
                if y == 0:
                    draw.text((corner[0], _HEADER - _CAPTION - 2), name, _INK, plain)
                sheet.paste(_tile(thumbnails[picture]), corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _label(draw: ImageDraw.ImageDraw, row: SheetRow, top: int, bold: Any, plain: Any) -> None:
    colour = {"erased": _RED, "kept": _GREEN}.get(row.note, _GREY)
    lines = _wrapped(draw, row.label, bold, _LABELS - 2 * _GAP)
    for line in lines:
        draw.text((_GAP, top), line, _INK, bold)
        top += 20
    draw.text((_GAP, top), row.note, colour, plain)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fitted(draw, line, font, width) for line in lines[:4]]


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"


def _tile(thumbnail: Tensor) -> Image.Image:
    """Small pictures keep their pixels when they fit a whole number of times."""
    image = Image.fromarray(thumbnail.numpy())
    whole = _TILE % image.width == 0 and _TILE % image.height == 0
    return image.resize((_TILE, _TILE), Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC)


def profile_plot(profiles: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """PNG of timestep profiles by concept: ``edges`` (bins + 1), ``gap`` and ``probabilities`` (bins) of each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.8 * len(profiles)), dpi=110, layout="constrained")
    axes = figure.subplots(len(profiles), 1, squeeze=False)[:, 0]
    for axis, (concept, profile) in zip(axes, profiles.items(), strict=True):
        edges, gap = list(profile["edges"]), list(profile["gap"])
        widths = [high - low for low, high in itertools.pairwise(edges)]
        axis.bar(edges[:-1], gap, widths, align="edge", color="#9db7d5", edgecolor="white", label="gap(t)")
        axis.set(xlabel="timestep t (0: picture, high: noise)", ylabel="gap(t)", xlim=(edges[0], edges[-1]))
        density = [p / width for p, width in zip(profile["probabilities"], widths, strict=True)]
        chance = axis.twinx()
        chance.stairs(density, edges, color="#b3261e", linewidth=1.8, baseline=None, label="p(t), where training looks")
        chance.set(ylabel="p(t)", ylim=(0, 1.1 * max(density)))
        handles = [*axis.get_legend_handles_labels()[0], *chance.get_legend_handles_labels()[0]]
        axis.set_title(concept, loc="left")
        axis.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def summary_table(evaluation: Mapping[str, Any]) -> str:
    """A few plain lines of an evaluation: the figures before and after with their intervals, and what suffered most."""
    after = evaluation["adapted"]
    judge, subset = evaluation["judge"], evaluation["subset"]
    lines = [
        f"erased {' and '.join(evaluation['kinds'])}: {title_of(evaluation['erased'])}",
        f"suite {evaluation['suite']}: {evaluation['counts']['pictures']} pictures"
        + (" (part of it)" if subset else "")
        + f", judge {judge['name']}",
        "",
        f"{'':6}{'before':24}" + ("after" if after else ""),
    ]
    for name, label in (("ua", "UA"), ("ira", "IRA"), ("ira_unnamed", "IRA_u"), ("cra", "CRA"), ("fid", "FID")):
        if name == "ira_unnamed" and evaluation["base"].get(name) is None:  # all are named, or an earlier release's
            continue
        cells = [_figure(side, name) for side in (evaluation["base"], after) if side]
        lines.append(f"{label:6}" + "".join(f"{cell:24}" for cell in cells).rstrip())
    if evaluation["residual"] is not None:
        lines += ["", f"residual {evaluation['residual']:.3f}, mean drift {evaluation['mean_drift']:.4f}"]
    if worst := evaluation["worst_neighbour"]:
        fall = ", ".join(
            f"{name} {worst['before'][name]:.3f} -> {worst['after'][name]:.3f}" for name in ("accuracy", "probability")
        )
        lines.append(f"worst neighbour: {worst['concept']}, {fall}")
    if damage := evaluation["damage"]:
        shares = {side: damage["kept"][side]["damaged"] for side in ("base", "adapted")}
        lines.append(f"kept pictures that look damaged: {shares['adapted']:.1%} (base {shares['base']:.1%})")
    if attacks := evaluation.get("attacks"):
        lines += ["", *attack_lines(attacks)]
    return "\n".join(lines)


def _figure(side: Mapping[str, Any], name: str) -> str:
    if side[name] is None:
        return "not measured"
    low, high = side["intervals"][name]
    digits = 2 if name == "fid" else 3
    return f"{side[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
