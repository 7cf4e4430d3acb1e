"""Erasures on a built-in model: which concepts there are, and the prompts that its pictures were made with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from spare_core.canvas.grid import TEMPLATE, Grid
from spare_core.concepts.concept import Erasure, Kind
from spare_core.concepts.names import same_concept
from spare_core.errors import ConceptError


def grid_erasure(
    grid: Grid, concept: str, surrogate: str, kind: Kind | None, keep: Sequence[str], aliases: Sequence[str] = ()
) -> Erasure:
    """An erasure on the grid: names are found whatever their case, and unless ``keep`` is given, what the grid keeps by
    itself is kept.

    Raises:
        ConceptError: see :class:`Erasure`; also for a name outside the grid, with the nearest one inside.
    """
    if kind is None:  # that of the nearest name: "Neon Lights" is answered with styles, not with objects
        kind = "style" if _nearest(concept, (*grid.styles, *grid.objects)) in grid.styles else "object"
    if kind not in ("style", "object"):
        raise ConceptError(f"kind is {kind!r}; {grid.title} knows style and object")
    # Built first with the words as given, so that an empty or contradictory request is named as such.
    Erasure(concept, surrogate, kind, tuple(keep), "{concept}", (), tuple(aliases))
    names = [_grid_name(text, grid, kind) for text in (concept, surrogate, *keep)]
    others = [*names, *aliases]
    usual = grid.keep.get(kind, grid.names(kind))
    kept = names[2:] or [name for name in usual if not any(same_concept(name, one) for one in others)]
    slots = {"style": ("{context}", "{concept}"), "object": ("{concept}", "{context}")}[kind]
    contexts = (grid.style_contexts or grid.objects) if kind == "style" else grid.styles
    template = TEMPLATE.format(object=slots[0], style=slots[1])
    return Erasure(names[0], names[1], kind, tuple(kept), template, contexts, tuple(aliases))


def _grid_name(text: str, grid: Grid, kind: Kind) -> str:
    names = grid.names(kind)
    for name in names:
        if same_concept(text, name):
            return name
    every = f"all: {', '.join(names)}" if len(names) <= 20 else f"it has {len(names)}"
    raise ConceptError(f"{grid.title} has no {kind} {text!r}; nearest: {_nearest(text, names)!r}; {every}")


def _nearest(text: str, names: Sequence[str]) -> str:
    return difflib.get_close_matches(" ".join(text.split()).title(), names, n=1, cutoff=0.0)[0]
