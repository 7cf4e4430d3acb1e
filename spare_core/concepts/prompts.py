"""Which prompts an erasure trains on and which it only measures, from its templates and a fixed split of contexts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.streams import stream_seed

NULL: Final = ""
"""The empty prompt, which guidance is measured against."""
_HELDOUT_CONTEXTS: Final = 5
"""Every fifth context is never trained on, only measured."""


class Prompt(NamedTuple):
    """A concept in a context, written with a frame's template; the empty prompt names none."""

    name: str
    context: str
    frame: int = 0


class Pair(NamedTuple):
    """A prompt that names an erased concept, and the prompt whose prediction replaces it; neither the name nor the
    context of the latter is an erased concept."""

    concept: Prompt
    surrogate: Prompt


EMPTY: Final = Prompt(NULL, "")


def all_prompts(erasures: Erasures) -> list[str]:
    """Every prompt that erasures may use, to be checked before any work."""
    prompts = [NULL]
    for part in erasures:
        frame = erasures.frame(part)
        contexts = [other for context in frame.contexts for other in (context, erasures.surrogate(context))]
        names = (*part.names, *erasures.retained(frame))
        prompts += [part.prompt(name, context) for name in names for context in contexts]
    return list(dict.fromkeys(prompts))


class PromptPlan:
    """The prompts of both sides, in the contexts to train on or in those held out."""

    def __init__(self, erasures: Erasures, seed: int, heldout: bool) -> None:
        self.erasures = erasures
        self._frames = erasures.frames
        self._contexts = [_split(frame.contexts, heldout) for frame in self._frames]
        self._parts = [[part for part in erasures if erasures.frame(part) == frame] for frame in self._frames]
        self._random = random.Random(stream_seed(seed, "prompts", "held out" if heldout else "trained"))

    def text(self, prompt: Prompt) -> str:
        """The prompt as the model reads it."""
        return self._parts[prompt.frame][0].prompt(prompt.name, prompt.context) if prompt.name else NULL

    def pairs(self, part: Erasure) -> list[Pair]:
        """Each name of ``part``'s concept in every context."""
        return [pair for name in part.names for pair in self._pairs(part, name)]

    def _pairs(self, part: Erasure, name: str) -> list[Pair]:
        return [self._pair(part, name, context) for context in self._contexts[self._frame(part)]]

    def forget(self, count: int) -> list[Pair]:
        """At least ``count`` prompt pairs, two or more for each name. Consecutive pairs share a context: the first
        trajectory is driven by the concept, the second by the surrogate, because sampling an erased model drifts from
        the one to the other."""
        names = [(part, name) for part in self.erasures for name in part.names]
        each = max(min(count, 2), -(-count // len(names)))
        drawn = []
        for first, (part, name) in enumerate(names):
            pairs = self._pairs(part, name)
            drawn += [pairs[(first + i // 2) % len(pairs)] for i in range(each)]
        return drawn

    def kept(self) -> list[list[Prompt]]:
        """For each retained concept its prompts, in every context that is not erased itself."""
        found = []
        for place, frame in enumerate(self._frames):
            contexts = [c for c in self._contexts[place] if not self.erasures.erased(c)]
            contexts = contexts or [self.erasures.surrogate(c) for c in self._contexts[place]]
            found += [[Prompt(name, c, place) for c in contexts] for name in self.erasures.retained(frame)]
        return found

    def retain(self, count: int) -> list[Prompt]:
        """The retained concepts in turn, each at least once, in shuffled contexts."""
        decks = [self._random.sample(prompts, len(prompts)) for prompts in self.kept()]
        drawn = []
        for i in range(max(count, len(decks))):
            turn, place = divmod(i, len(decks))
            drawn.append(decks[place][turn % len(decks[place])])
        return drawn

    def pairs_beside(self, prompts: Sequence[Prompt]) -> list[Pair]:
        """In the context of each, a concept that is erased and its surrogate; the concepts take turns."""
        found = []
        for i, prompt in enumerate(prompts):
            parts = self._parts[prompt.frame]
            part = parts[i % len(parts)]
            found.append(self._pair(part, part.concept, prompt.context))
        return found

    def _pair(self, part: Erasure, name: str, context: str) -> Pair:
        replaced = self.erasures.surrogate(part.concept), self.erasures.surrogate(context)
        place = self._frame(part)
        return Pair(Prompt(name, context, place), Prompt(*replaced, place))

    def _frame(self, part: Erasure) -> int:
        return self._frames.index(self.erasures.frame(part))


def _split(contexts: Sequence[str], heldout: bool) -> list[str]:
    shuffled = list(contexts)
    random.Random(0).shuffle(shuffled)  # the same split under every seed: what is held out stays held out
    kept_back = shuffled[::_HELDOUT_CONTEXTS] if len(shuffled) >= _HELDOUT_CONTEXTS else shuffled
    return kept_back if heldout else [c for c in shuffled if c not in kept_back] or shuffled
