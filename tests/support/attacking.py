"""What is attacked in tests, and by what: as little work as there can be."""

from __future__ import annotations

import dataclasses

from spare_core.attacks.budgets import BUDGETS, Inverting, Learning, Relearning, Searching
from spare_core.method.settings import EraseSettings
from tests.support.grids import small_suite

SUITE = small_suite()
QUICK = dataclasses.replace(
    BUDGETS["quick"], phrase_pictures=2, inversion=Learning(3, (0.2,)), conditioning=Learning(2, (0.02, 0.1)),
    concept=Learning(2, (0.2,)), prompt=Searching(2, 2, 1, 0.1), latents=Inverting(2, 3, 1),
    relearning=Relearning(2, ("lora", "full"), (4,)), pictures=3, examples=4, example_steps=4,
)  # fmt: skip
PLAIN = EraseSettings(
    heldout=2, example_steps=2, examples=4, retain_examples=4, rank=2, steps=1, prior_texts=40, failed_above=100.0,
    dtype="float32", device="cpu",
)  # fmt: skip
