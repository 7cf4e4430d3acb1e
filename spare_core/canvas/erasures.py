"""What Canvas knows of itself: which concepts there are, and the prompts that its pictures were made with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from spare_core.canvas.protocol import OBJECTS, STYLES, TEMPLATE
from spare_core.concepts.concept import Erasure, Kind, same_concept
from spare_core.errors import ConceptError


def canvas_erasure(
    concept: str, surrogate: str, kind: Kind | None, keep: Sequence[str], aliases: Sequence[str] = ()
) -> Erasure:
    """An erasure on Canvas's grid: names are found whatever their case, and unless ``keep`` is given all other concepts
    of the domain are kept.

    Raises:
        ConceptError: see :class:`Erasure`; also for a name outside the grid, with the nearest one inside.
    """
    domains: dict[Kind, tuple[str, ...]] = {"style": STYLES, "object": tuple(OBJECTS)}
    if kind is None:  # that of the nearest name: "Neon Lights" is answered with styles, not with objects
        kind = "style" if _nearest(concept, (*STYLES, *OBJECTS)) in STYLES else "object"
    if kind not in domains:
        raise ConceptError(f"kind is {kind!r}; Canvas knows style and object")
    # Built first with the words as given, so that an empty or contradictory request is named as such.
    Erasure(concept, surrogate, kind, tuple(keep), "{concept}", (), tuple(aliases))
    names = [_canvas_name(text, domains[kind], kind) for text in (concept, surrogate, *keep)]
    others = [*names, *aliases]
    kept = names[2:] or [name for name in domains[kind] if not any(same_concept(name, one) for one in others)]
    slots = {"style": ("{context}", "{concept}"), "object": ("{concept}", "{context}")}[kind]
    contexts = tuple(OBJECTS) if kind == "style" else STYLES
    template = TEMPLATE.format(object=slots[0], style=slots[1])
    return Erasure(names[0], names[1], kind, tuple(kept), template, contexts, tuple(aliases))


def _canvas_name(text: str, domain: Sequence[str], kind: str) -> str:
    for name in domain:
        if same_concept(text, name):
            return name
    raise ConceptError(f"Canvas has no {kind} {text!r}; nearest: {_nearest(text, domain)!r}; all: {', '.join(domain)}")


def _nearest(text: str, names: Sequence[str]) -> str:
    return difflib.get_close_matches(" ".join(text.split()).title(), names, n=1, cutoff=0.0)[0]
