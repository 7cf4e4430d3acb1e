"""Which prompts an erasure trains on and which it only measures, from its templates and a fixed split of contexts."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.generic import TEMPLATES, generic_texts
from spare_core.concepts.names import bare_name
from spare_core.streams import stream_seed

NULL: Final = ""
"""The empty prompt, which guidance is measured against."""
_PARTS: Final = 5
"""Where there are five contexts or more, a fifth is only chosen by, and another fifth only reported on."""
Purpose = Literal["train", "choose", "report", "solve"]
"""What prompts are for: to train on, to choose by measurement, to report on; "solve": the first two."""


class Prompt(NamedTuple):
    """A concept in a context, written with a frame's template; the empty prompt names none. One of the frame
    :data:`FREE` is the text in ``context`` as it stands."""

    name: str
    context: str
    frame: int = 0


class Pair(NamedTuple):
    """A prompt that names an erased concept, and the prompt whose prediction replaces it; neither the name nor the
    context of the latter is an erased concept."""

    concept: Prompt
    surrogate: Prompt


EMPTY: Final = Prompt(NULL, "")
FREE: Final = -1
GENERIC: Final = "(generic prompts)"
"""Name of the prompts that are generic texts."""
NEAR: Final = "(unnamed) "
"""What the name of a prompt begins with that is about a word next to an erased concept, which nobody named."""


def all_prompts(erasures: Erasures) -> list[str]:
    """Every prompt that erasures may use, to be checked before any work."""
    prompts = [NULL]
    for frame in erasures.frames:
        parts = [part for part in erasures if erasures.frame(part) == frame]
        contexts = [other for context in frame.contexts for other in (context, erasures.surrogate(context))]
        names = (*(name for part in parts for name in part.names), *erasures.retained(frame))
        prompts += [parts[0].prompt(name, context) for name in names for context in contexts]
    return list(dict.fromkeys(prompts))


class PromptPlan:
    """The prompts of both sides, in the contexts for one purpose; ``words`` are what generic texts are made of."""

    def __init__(self, erasures: Erasures, seed: int, purpose: Purpose, words: Sequence[str] = ()) -> None:
        self.erasures = erasures
        self._frames = erasures.frames
        self._contexts = [contexts_for(purpose, erasures.contexts(frame)) for frame in self._frames]
        self._parts = [[part for part in erasures if erasures.frame(part) == frame] for frame in self._frames]
        self._random = random.Random(stream_seed(seed, "prompts", purpose))
        self._words = erasures.other_words(words)

    def text(self, prompt: Prompt) -> str:
        """The prompt as the model reads it."""
        if prompt.frame == FREE:
            return prompt.context
        return self._parts[prompt.frame][0].prompt(prompt.name, prompt.context) if prompt.name else NULL

    def pairs(self, part: Erasure) -> list[Pair]:
        """Each name of ``part``'s concept in every context."""
        return [pair for name in part.names for pair in self._pairs(part, name)]

    def pairs_elsewhere(self, part: Erasure, count: int) -> list[Pair]:
        """The names of ``part``'s concept in turn in up to ``count`` contexts that are words of the vocabulary; none
        that a held-out context has. The same words under every seed."""
        place = self._frame(part)
        if "{context}" not in self._frames[place].template:
            return []
        held_out = {bare_name(word) for context in self.erasures.contexts(self._frames[place])
                    if context not in self._contexts[place] for word in context.split()}  # fmt: skip
        words = [word for word in self._words if bare_name(word) not in held_out]
        drawn = random.Random(stream_seed(0, "elsewhere")).sample(words, min(count, len(words)))
        return [self._pair(part, part.names[i % len(part.names)], word) for i, word in enumerate(drawn)]

    def _pairs(self, part: Erasure, name: str) -> list[Pair]:
        return [self._pair(part, name, context) for context in self._contexts[self._frame(part)]]

    def forget(self, count: int, only: Collection[str] = ()) -> list[Pair]:
        """At least ``count`` prompt pairs, two or more for each name, of all or ``only`` some. Consecutive pairs share
        a context: the first trajectory is driven by the concept, the second by the surrogate, because sampling an
        erased model drifts from the one to the other."""
        names = [(part, name) for part in self.erasures for name in part.names if not only or name in only]
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

    def generic(self, count: int) -> list[Prompt]:
        """Texts about anything that mention nothing which is erased, every other one in a template of the erasures;
        none where there are no words."""
        if not self._words:
            return []
        own = [frame.template for frame in self._frames]
        templates = [template for i, each in enumerate(TEMPLATES) for template in (own[i % len(own)], each)]
        texts = generic_texts(self._words, 2 * count, self._random, templates)
        return [Prompt(GENERIC, text, FREE) for text in texts if self.erasures.mentioned(text) is None][:count]

    def near(self, words: Mapping[str, Erasure], each: int) -> list[Prompt]:
        """Prompts about words that lie next to an erasure, ``each`` of every one, in its template and contexts in
        turn."""
        found = []
        for word, part in words.items():
            contexts = self._contexts[self._frame(part)]
            found += [
                Prompt(f"{NEAR}{word}", part.prompt(word, contexts[i % len(contexts)]), FREE) for i in range(each)
            ]
        return found

    def pairs_beside(self, prompts: Sequence[Prompt]) -> list[Pair]:
        """In the context of each, a concept that is erased and its surrogate; the concepts take turns. Beside a text
        without a frame, in the contexts in turn."""
        found = []
        for i, prompt in enumerate(prompts):
            parts = self.erasures.parts if prompt.frame == FREE else self._parts[prompt.frame]
            part = parts[i % len(parts)]
            contexts = self._contexts[self._frame(part)] if prompt.frame == FREE else [prompt.context]
            found.append(self._pair(part, part.concept, contexts[i % len(contexts)]))
        return found

    def forget_beside(self, kept: Sequence[Prompt]) -> list[tuple[Pair, int]]:
        """For each erased name a pair whose surrogate's prompt is one of ``kept``, and the place of that one there;
        names with the same surrogate take its prompts in turn."""
        places: dict[tuple[int, str], list[int]] = {}
        for place, prompt in enumerate(kept):
            places.setdefault((prompt.frame, prompt.name), []).append(place)
        found, taken = [], dict.fromkeys(places, 0)
        for part in self.erasures:
            key = self._frame(part), self.erasures.surrogate(part.concept)
            for name in part.names:
                place = places[key][taken[key] % len(places[key])]
                taken[key] += 1
                found.append((self._pair(part, name, kept[place].context), place))
        return found

    def _pair(self, part: Erasure, name: str, context: str) -> Pair:
        replaced = self.erasures.surrogate(part.concept), self.erasures.surrogate(context)
        place = self._frame(part)
        return Pair(Prompt(name, context, place), Prompt(*replaced, place))

    def _frame(self, part: Erasure) -> int:
        return self._frames.index(self.erasures.frame(part))


def contexts_for(purpose: Purpose, contexts: Sequence[str]) -> list[str]:
    """The contexts of a purpose, the same under every seed: what is held out stays held out. Fewer than five serve for
    every purpose."""
    shuffled = list(contexts)
    random.Random(0).shuffle(shuffled)
    if len(shuffled) < _PARTS:
        return shuffled
    report, choose = shuffled[::_PARTS], shuffled[1::_PARTS]
    if purpose in ("report", "choose"):
        return report if purpose == "report" else choose
    return [c for c in shuffled if c not in report and (purpose == "solve" or c not in choose)]
