"""Which prompts an erasure trains on and which it only measures, from one template and a fixed split of contexts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from spare_core.concept import Erasure

NULL: Final = ""
"""The empty prompt, which guidance is measured against."""
_HELDOUT_CONTEXTS: Final = 5
"""Every fifth context is never trained on, only measured."""


class Prompt(NamedTuple):
    """A concept in a context; the empty prompt names none."""

    name: str
    context: str


EMPTY: Final = Prompt(NULL, "")


def all_prompts(erasure: Erasure) -> list[str]:
    """Every prompt an erasure may use, to be checked before any work."""
    return [NULL, *(p for name in (erasure.concept, *erasure.retained) for p in erasure.prompts(name))]


class PromptPlan:
    """The prompts of both sides, in the contexts to train on or in those held out."""

    def __init__(self, erasure: Erasure, seed: int, heldout: bool) -> None:
        self.erasure = erasure
        contexts = list(erasure.contexts or ("",))
        random.Random(0).shuffle(contexts)  # the same split under every seed: what is held out stays held out
        kept_back = contexts[::_HELDOUT_CONTEXTS] if len(contexts) >= _HELDOUT_CONTEXTS else contexts
        self.contexts = kept_back if heldout else [c for c in contexts if c not in kept_back] or contexts
        self._random = random.Random(2 * seed + heldout)

    def text(self, prompt: Prompt) -> str:
        """The prompt as the model reads it."""
        return self.erasure.prompt(*prompt) if prompt.name else NULL

    def forget(self, count: int) -> list[Prompt]:
        """Half under the concept, half under the surrogate: sampling an erased model starts on latents of the first
        kind and ends on the second."""
        names = (self.erasure.concept, self.erasure.surrogate)
        return [Prompt(names[i % 2], self.contexts[(i // 2) % len(self.contexts)]) for i in range(count)]

    def retain(self, count: int) -> list[Prompt]:
        """The retained concepts in turn, each at least once, in shuffled contexts."""
        names = self.erasure.retained
        decks = {name: self._random.sample(self.contexts, len(self.contexts)) for name in names}
        drawn = []
        for i in range(max(count, len(names))):
            turn, place = divmod(i, len(names))
            drawn.append(Prompt(names[place], decks[names[place]][turn % len(self.contexts)]))
        return drawn

    def of_concept(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The concept in the context of each."""
        return [Prompt(self.erasure.concept, prompt.context) for prompt in prompts]

    def of_surrogate(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The surrogate in the context of each."""
        return [Prompt(self.erasure.surrogate, prompt.context) for prompt in prompts]
