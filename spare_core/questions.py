"""What the frozen model is asked on each trajectory of both sides, over one table of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spare_core.conditioning import Conditioning
from spare_core.denoiser import Denoiser
from spare_core.prompts import EMPTY, Prompt, PromptPlan
from spare_core.trajectories import Asked

CONCEPT, SURROGATE = 0, 1
"""Places of the two among the answers of a trajectory of the forget side."""


class Questions(NamedTuple):
    """``rows[prompt]`` is the row of ``table`` that a prompt has, in the order of the rows."""

    rows: dict[Prompt, int]
    table: Conditioning
    forget: list[Asked]
    retain: list[Asked]


def pose(
    denoiser: Denoiser,
    plan: PromptPlan,
    forget: Sequence[Prompt],
    retain: Sequence[Prompt],
    resolution: int,
    further: Sequence[Prompt] = (),
) -> Questions:
    """Under a prompt of the forget side: concept, surrogate and empty prompt, driven by concept and surrogate in turn.
    Under one of the retain side: itself, which drives, and the empty prompt. ``further`` prompts only have rows."""
    concepts, surrogates = plan.of_concept(forget), plan.of_surrogate(forget)
    rows = {p: row for row, p in enumerate(dict.fromkeys([EMPTY, *concepts, *surrogates, *retain, *further]))}
    pairs = zip(concepts, surrogates, strict=True)
    return Questions(
        rows=rows,
        table=denoiser.encode_prompts([plan.text(prompt) for prompt in rows], resolution),
        forget=[Asked((rows[c], rows[s], rows[EMPTY]), driver=i % 2, empty=2) for i, (c, s) in enumerate(pairs)],
        retain=[Asked((rows[prompt], rows[EMPTY]), driver=0, empty=1) for prompt in retain],
    )
