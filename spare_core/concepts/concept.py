"""What to erase, what replaces it, what must survive; and the prompts of all three, from one template.

The authors of SPARE record a mismatch between training and evaluation captions as a defect of their code: here every
side differs only in the concept that is named.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from spare_core.concepts.names import alike, normalise
from spare_core.errors import ConceptError

Kind = Literal["style", "object", "person"]
KINDS: Final[tuple[Kind, ...]] = ("style", "object", "person")
MAX_CHARACTERS: Final = 300
"""Longest concept as text; the tokenizer's own limit is checked against the model that is loaded."""


@dataclass(frozen=True)
class Erasure:
    """One concept to erase.

    ``template`` has a ``{concept}`` slot and, if ``contexts`` is not empty, a ``{context}`` slot: what else is in the
    picture. ``keep`` are the concepts to hold fixed by name; the surrogate and the empty prompt always are too.
    ``aliases`` are other names of the concept, which are erased with it.

    Raises:
        ConceptError: at construction, naming every contradiction.
    """

    concept: str
    surrogate: str
    kind: Kind
    keep: tuple[str, ...]
    template: str
    contexts: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [p for name in ("concept", "surrogate") for p in text_problems(name, getattr(self, name))]
        problems += [p for text in self.keep for p in text_problems("kept concept", text)]
        problems += [p for text in self.aliases for p in text_problems("alias", text)]
        if not all(isinstance(text, str) for text in (*self.names, self.surrogate, *self.keep)):
            raise ConceptError("; ".join(problems))
        if self.kind not in KINDS:
            problems.append(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if any(alike(name, self.surrogate) for name in self.names):
            problems.append(f"the surrogate {self.surrogate!r} is the concept itself; name what should replace it")
        problems += [
            f"{name!r} is both to be erased and to be kept; remove it from one side"
            for name in self.names
            if any(alike(name, kept) for kept in self.keep)
        ]
        if len({normalise(name) for name in self.names}) < len(self.names):
            problems.append(f"an alias of {self.concept!r} is named twice, or is the concept itself; name each once")
        problems += self._template_problems()
        if problems:
            raise ConceptError("; ".join(problems))

    def _template_problems(self) -> list[str]:
        slots = ("{concept}", "{context}") if self.contexts else ("{concept}",)
        missing = [slot for slot in slots if self.template.count(slot) != 1]
        rest = self.template
        for slot in slots:
            rest = rest.replace(slot, "")
        if missing or "{" in rest or "}" in rest:
            return [f"template is {self.template!r}; it must contain {' and '.join(slots)} once and no other braces"]
        return []

    @property
    def names(self) -> tuple[str, ...]:
        """All that is erased: the concept, then its aliases."""
        return (self.concept, *self.aliases)

    @property
    def retained(self) -> tuple[str, ...]:
        """Concepts the retain side names: the surrogate, then the kept ones, without repeats."""
        found: dict[str, str] = {}
        for name in (self.surrogate, *self.keep):
            found.setdefault(normalise(name), name)
        return tuple(found.values())

    def prompt(self, concept: str, context: str = "") -> str:
        """The template filled in; braces in ``concept`` stay as they are."""
        before, _, after = self.template.partition("{concept}")
        return before.replace("{context}", context) + concept + after.replace("{context}", context)

    def prompts(self, concept: str) -> Iterator[str]:
        """``concept`` in each context."""
        for context in self.contexts or ("",):
            yield self.prompt(concept, context)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as written to ``spare.json``."""
        return {
            "concept": self.concept,
            "surrogate": self.surrogate,
            "kind": self.kind,
            "kept": list(self.keep),
            "template": self.template,
            "contexts": list(self.contexts),
            **({"aliases": list(self.aliases)} if self.aliases else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Erasure:
        """The inverse of :meth:`as_dict`."""
        return cls(
            concept=values["concept"],
            surrogate=values["surrogate"],
            kind=values["kind"],
            keep=tuple(values["kept"]),
            template=values["template"],
            contexts=tuple(values["contexts"]),
            aliases=tuple(values.get("aliases", ())),
        )


def text_problems(name: str, text: str) -> list[str]:
    """What keeps a text, said to be the ``name``, from being put into a prompt."""
    if not isinstance(text, str):
        return [f"the {name} is {text!r}; it must be text"]
    if not text.replace("\u200d", "").strip():
        said = (
            "name what is to be drawn instead, as in 'a photograph' or 'a dog'"
            if name == "surrogate"
            else "write it as people do, e.g. 'Neon Lines'"
        )
        return [f"the {name} is empty; {said}"]
    bad = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and c != "\u200d"]
    if bad:
        return [f"the {name} {text!r} contains the control or invisible character U+{ord(bad[0]):04X}; remove it"]
    if len(text) > MAX_CHARACTERS:
        return [f"the {name} {text[:40]!r}… has {len(text)} characters; at most {MAX_CHARACTERS} are allowed"]
    return []
