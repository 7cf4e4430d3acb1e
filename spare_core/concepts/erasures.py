"""Several concepts that are erased together, and what that makes of their surrogates, contexts and kept concepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from spare_core.concepts.concept import Erasure
from spare_core.concepts.names import alike, bare_name, bare_words, normalise
from spare_core.errors import AdapterError, ConceptError

_TITLE: Final = 8
"""Most concepts that a title names."""


class Frame(NamedTuple):
    """What prompts are written with: a template and what fills its context."""

    template: str
    contexts: tuple[str, ...]


class Erasures:
    """One concept or more that are erased together.

    A surrogate that another of them erases is followed to the last one; what one of them keeps and another erases or
    mentions is not kept. ``bundle`` says whether the caller asked for a list, possibly of one.

    Raises:
        ConceptError: at construction, for a concept that is erased twice and for surrogates that go round in a circle.
    """

    def __init__(self, *parts: Erasure, bundle: bool | None = None) -> None:
        self.parts = parts
        self.bundle = len(parts) > 1 if bundle is None else bundle
        if not self.parts:
            raise ConceptError("there is nothing to erase; name at least one concept")
        self._by_name: dict[str, Erasure] = {}
        twice = []
        for part in self.parts:
            for name in part.names:
                if normalise(name) in self._by_name:
                    twice.append(name)
                self._by_name[normalise(name)] = part
        if twice:
            raise ConceptError(f"{', '.join(map(repr, twice))} would be erased twice; name each concept once")
        named = [(bare_name(name), name, part) for part in self.parts for name in part.names]
        self._by_bare_name = {bare: part for bare, _, part in reversed(named)}
        words = [(bare_words(bare), name) for bare, name, _ in reversed(named)]
        self._names = {own: name for own, name in words if own.strip()}
        for part in self.parts:
            self.surrogate(part.concept)

    @classmethod
    def of(cls, *manifests: Mapping[str, Any]) -> Erasures:
        """What adapters erase, by what their ``spare.json`` says: one concept, or the ``requests`` of a bundle.

        Raises:
            AdapterError: if one does not say it.
        """
        try:
            parts = [Erasure.from_dict(one) for each in manifests for one in each.get("requests", [each])]
            return cls(*parts, bundle="requests" in manifests[0] or None)
        except (KeyError, TypeError) as error:
            raise AdapterError(
                f"an adapter does not say what it erases ({error!r}); erase that concept again"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Erasures) and (self.parts, self.bundle) == (other.parts, other.bundle)

    def __hash__(self) -> int:
        return hash(self.parts)

    def __iter__(self) -> Iterator[Erasure]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def title(self) -> str:
        """The concepts, for people."""
        return title_of([part.concept for part in self.parts])

    def as_dict(self) -> dict[str, Any]:
        """Plain values as ``spare.json`` has them: one erasure's facts, or ``requests``; :meth:`of` reads both."""
        facts = [part.as_dict() for part in self.parts]
        return {"requests": facts} if self.bundle else facts[0]

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The distinct frames, in the order of the erasures."""
        return tuple(dict.fromkeys(self.frame(part) for part in self.parts))

    @staticmethod
    def frame(part: Erasure) -> Frame:
        """The frame of one erasure."""
        return Frame(part.template, part.contexts or ("",))

    def surrogate(self, name: str) -> str:
        """What ``name`` becomes: the last surrogate of an erased concept, itself for any other.

        Raises:
            ConceptError: if the surrogates go round in a circle.
        """
        passed = [name]
        while (part := self._erasing(passed[-1])) is not None:
            passed.append(part.surrogate)
            if normalise(passed[-1]) in map(normalise, passed[:-1]):
                raise ConceptError(
                    f"the surrogates go round in a circle: {' -> '.join(passed)}; name one that is not erased"
                )
        return passed[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that is erased, aliases too."""
        return tuple(name for part in self.parts for name in part.names)

    def surrogates(self) -> dict[str, str]:
        """What each name that is erased was asked to become."""
        return {name: part.surrogate for part in self.parts for name in part.names}

    def named(self, names: Sequence[str]) -> list[Erasure]:
        """The erasures that erase one of the ``names``.

        Raises:
            ConceptError: if one of the names is not erased.
        """
        strangers = [name for name in names if not self.erased(name)]
        if strangers:
            raise ConceptError(f"{', '.join(map(repr, strangers))} is not erased there, but {self.title}")
        wanted = [self._erasing(name) for name in names]
        return [part for part in self.parts if part in wanted]

    def erased(self, name: str) -> bool:
        """Whether ``name`` is one of the concepts or of their aliases, with an article or in the plural or not."""
        return self._erasing(name) is not None

    def mentioned(self, text: str) -> str | None:
        """The first erased name whose words are among those of ``text``, which says more; None if there is none. To
        hold the model to what it draws for ``text`` would hold it to the concept."""
        whole = bare_words(text)
        split = bare_words(whole.replace("-", " ")) if "-" in whole else whole
        # A hot-dog is no dog, but Spider-Man is Spider Man.
        words = ((split if " " in own.strip() else whole, own, name) for own, name in self._names.items())
        return next((name for these, own, name in words if own in these), None)

    def other_words(self, words: Sequence[str]) -> list[str]:
        """Those that are no part of an erased name, also in the plural, however small: to a model that reads a word in
        pieces, "hroom" may be a mushroom."""
        names = "\n".join(name for own in self._names for name in own.split())
        return [word for word in words if normalise(word) not in names and bare_name(word) not in names]

    @property
    def left_out(self) -> dict[str, str]:
        """What was to be kept but mentions an erased name, with that name."""
        texts = [name for part in self.parts for name in part.keep if not self.erased(name)]
        return {text: name for text in texts if (name := self.mentioned(text)) is not None}

    def contexts(self, frame: Frame) -> tuple[str, ...]:
        """The contexts of a frame that mention nothing which is erased, unless all do; a context that *is* an erased
        concept stays, since its surrogate can take its place."""
        clear = [context for context in frame.contexts if self.erased(context) or self.mentioned(context) is None]
        return tuple(clear) or frame.contexts

    def retained(self, frame: Frame) -> tuple[str, ...]:
        """What the erasures of ``frame`` keep, their last surrogates first, without repeats and without what is
        erased."""
        parts = [part for part in self.parts if self.frame(part) == frame]
        found: dict[str, str] = {}
        for name in dict.fromkeys(self.surrogate(part.concept) for part in parts):
            found.setdefault(normalise(name), name)
        # A list's requests mostly keep the same: what is compared with every erased name is compared once.
        for name in dict.fromkeys(name for part in parts for name in part.keep):
            if normalise(name) not in found and not self.erased(name) and self.mentioned(name) is None:
                found[normalise(name)] = name
        return tuple(found.values())

    def _erasing(self, name: str) -> Erasure | None:
        return self._by_name.get(normalise(name)) or self._by_bare_name.get(bare_name(name))


def keeping(stay: Sequence[Erasure], gone: Sequence[Erasure]) -> list[Erasure]:
    """The erasures that ``stay``, which from now on keep what those that are ``gone`` erased in the same frame: what
    was given back must be drawn again, beside whatever is erased around it."""
    kept = []
    for part in stay:
        back = [name for other in gone if Erasures.frame(other) == Erasures.frame(part) for name in other.names]
        new = [name for name in back if not any(alike(name, own) for own in (*part.names, *part.keep))]
        kept.append(dataclasses.replace(part, keep=(*part.keep, *new)))
    return kept


def title_of(concepts: Sequence[str]) -> str:
    """The concepts as one text for people; a long list is cut to its first ones."""
    more = len(concepts) - _TITLE
    return ", ".join(concepts) if more <= 0 else f"{', '.join(concepts[:_TITLE])} and {more} more"
