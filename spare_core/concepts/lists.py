"""Erasures from what people write: the options of a command, a row of a list, a list in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from spare_core import built_in
from spare_core.concepts.concept import KINDS, Erasure, Kind
from spare_core.concepts.defaults import DEFAULTS
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.names import bare_name
from spare_core.errors import ConceptError, SettingsError
from spare_core.store.fetching import read_yaml

ROW: Final[Mapping[str, type]] = {
    "concept": str, "surrogate": str, "kind": str, "keep": list, "template": str, "contexts": list, "aliases": list,
}  # fmt: skip
"""What a request of a list may say; as the options of ``spare erase``."""


def build_erasure(
    model: str,
    concept: str,
    surrogate: str,
    kind: Kind | None = None,
    keep: Sequence[str] = (),
    template: str | None = None,
    contexts: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
) -> Erasure:
    """An erasure with the defaults of its model: a built-in one knows its own, every other gets its kind's.

    Raises:
        ConceptError: see :class:`Erasure`; of a built-in model also for a name that it does not know.
    """
    if (known := built_in.find(model)) is not None and template is None and contexts is None:
        erasure: Erasure = known.erasure(concept, surrogate, kind, keep, aliases)
        return erasure
    if kind not in DEFAULTS:
        raise ConceptError(f"say what {concept!r} is, --kind {', '.join(KINDS)}; got {kind!r}")
    defaults = DEFAULTS[kind]
    used = template or defaults.template
    if contexts is None:
        contexts = defaults.contexts if "{context}" in used else ()
    if not keep:
        erased = [bare_name(name) for name in (concept, *aliases)]
        keep = [name for name in defaults.keep if bare_name(name) not in erased]
    return Erasure(concept, surrogate, kind, tuple(keep), used, tuple(contexts), tuple(aliases))


def build_erasures(model: str, rows: Sequence[Any]) -> Erasures:
    """From one mapping a concept, with :data:`ROW`'s names, of which ``concept`` and ``surrogate`` must be there.

    Raises:
        SettingsError: with all that is wrong in any row.
        ConceptError: for a concept that is erased twice, or that another row asks to keep, and for surrogates in a
            circle.
    """
    parts, problems = [], []
    for number, row in enumerate(rows, 1):
        found = _row_problems(row)
        if not found:
            try:
                parts.append(build_erasure(model, **row))
            except ConceptError as error:
                found = [str(error)]
        problems += [f"request {number}: {problem}" if len(rows) > 1 else problem for problem in found]
    if problems:
        raise SettingsError(problems)
    erasures = Erasures(*parts)
    check_kept(rows, erasures)
    return erasures


def check_kept(rows: Sequence[Mapping[str, Any]], erasures: Erasures) -> None:
    """Refuse rows that ask by name to keep what is erased.

    Raises:
        ConceptError: naming the first.
    """
    for number, row in enumerate(rows, 1):
        erased = [name for name in row.get("keep") or () if erasures.erased(name)]
        if erased:
            raise ConceptError(
                f"request {number}, {row['concept']!r}, keeps {', '.join(map(repr, erased))}, which another erases; "
                "remove it from one side"
            )


def read_rows(source: str | Path) -> list[Any]:
    """The list in a YAML file, here or in S3, for :func:`build_erasures`.

    Raises:
        SettingsError: if it cannot be read or holds something else.
        StoreError: if it cannot be fetched.
    """
    rows = read_yaml(source)
    if not isinstance(rows, list) or not rows:
        raise SettingsError([f"{source} must hold a list of requests, as in '- {{concept: Cat, surrogate: Dog}}'"])
    return rows


def _row_problems(row: Any) -> list[str]:
    if not isinstance(row, Mapping):
        return [f"it is {row!r}; it must map names to values, as in {{concept: Cat, surrogate: Dog}}"]
    if {"target", "neutral"} & row.keys() and "concept" not in row:
        return [
            "it is in the form of LECO's and SPM's prompts; write {concept: TARGET, surrogate: WHAT IS DRAWN INSTEAD, "
            "kind: style, object or person}: target is the concept, neutral the surrogate, which must not be empty; "
            "the rest are settings"
        ]
    problems = [f"unknown name {name!r}; known: {', '.join(ROW)}" for name in row if name not in ROW]
    problems += [f"{name} is missing" for name in ("concept", "surrogate") if name not in row]
    for name in row.keys() & ROW.keys():
        value = row[name]
        texts = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        if not (texts if ROW[name] is list else isinstance(value, str)):
            problems.append(f"{name} is {value!r}; it must be {'a list of texts' if ROW[name] is list else 'text'}")
    return problems
