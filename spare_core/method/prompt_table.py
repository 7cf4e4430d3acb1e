"""What the frozen model is asked on each trajectory of both sides, over one table of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spare_core.concepts.prompts import EMPTY, Pair, Prompt, PromptPlan
from spare_core.method.trajectories import Query
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser

CONCEPT, SURROGATE = 0, 1
"""Places of the two among the answers of a trajectory of the forget side."""


class PromptTable(NamedTuple):
    """``rows[prompt]`` is the row of ``table`` that a prompt has, in the order of the rows."""

    rows: dict[Prompt, int]
    table: Conditioning
    forget: list[Query]
    retain: list[Query]


def build_prompt_table(
    denoiser: Denoiser,
    plan: PromptPlan,
    forget: Sequence[Pair],
    retain: Sequence[Prompt],
    resolution: int,
    further: Sequence[Prompt] = (),
) -> PromptTable:
    """For a pair: its concept, its surrogate and the empty prompt, driven by the first two in turn. For a retained
    prompt: itself, which drives, and the empty one. ``further`` prompts only have rows."""
    named = [EMPTY, *(prompt for pair in forget for prompt in pair), *retain, *further]
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(named))}
    return PromptTable(
        rows=rows,
        table=denoiser.encode_prompts([plan.text(prompt) for prompt in rows], resolution),
        forget=[Query((rows[c], rows[s], rows[EMPTY]), driver=i % 2, empty=2) for i, (c, s) in enumerate(forget)],
        retain=[Query((rows[prompt], rows[EMPTY]), driver=0, empty=1) for prompt in retain],
    )
