"""How much an attacker may spend. A result says all of it: figures of other budgets are other figures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from spare_core.attacks.inversion import Try
from spare_core.errors import SettingsError
from spare_core.evaluation.attacked import BUDGETS as NAMES


class Learning(NamedTuple):
    """Steps of Adam at each of ``rates``, in root mean squares of what is learned."""

    steps: int
    rates: tuple[float, ...]


class Searching(NamedTuple):
    """Tokens before each of so many ``prompts``, moved by so many ``steps`` at each of so many ``timesteps``. At a
    ``rate`` of .01, UnlearnDiffAtk's, another token becomes the likeliest every few dozen steps."""

    prompts: int
    steps: int
    timesteps: int
    rate: float


class Relearning(NamedTuple):
    """So many ``steps`` of fine-tuning in each of ``ways``, on each of these numbers of ``pictures``."""

    steps: int
    ways: tuple[str, ...]
    pictures: tuple[int, ...]


class Inverting(NamedTuple):
    """So many ``pictures``, drawn again in so many ``steps``, each with so many ``inner`` ones of its embedding."""

    pictures: int
    steps: int
    inner: int


@dataclass(frozen=True)
class Budget:
    """``phrase_pictures`` are drawn of each paraphrase. An inversion is tried for every number of ``vectors`` at every
    one of its rates, ``restarts`` times, with ``batch_size`` rows a step; ``pictures`` judge each try. ``inversion``
    and ``conditioning`` are what each may spend on a try: learned tokens take more steps and higher rates. ``concept``
    is what inversion from pictures may, which learns one vector from 25 of them.

    ``examples`` trajectories of ``example_steps`` states are sampled from the base model for the attacker to learn
    from.
    """

    phrase_pictures: int
    inversion: Learning
    conditioning: Learning
    concept: Learning
    prompt: Searching
    latents: Inverting
    relearning: Relearning
    restarts: int
    vectors: tuple[int, ...]
    pictures: int
    batch_size: int = 8
    examples: int = 16
    example_steps: int = 10

    def learning(self, attack: str) -> Learning:
        """What an inversion may spend on a try."""
        return {"inversion": self.inversion, "conditioning": self.conditioning, "pictures": self.concept}[attack]

    def tries(self, attack: str) -> list[Try]:
        """Of an inversion by vectors."""
        rates = self.learning(attack).rates
        if attack == "pictures":
            return [Try(1, rate, 0) for rate in rates]
        return [Try(*each) for each in itertools.product(self.vectors, rates, range(self.restarts))]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        named = {name: dict(value._asdict()) for name, value in vars(self).items() if hasattr(value, "_asdict")}
        return {**vars(self), **named, "vectors": list(self.vectors)}


BUDGETS: Final = dict(zip(NAMES, (
    Budget(
        phrase_pictures=4,
        inversion=Learning(200, (0.2,)),
        conditioning=Learning(60, (0.075,)),
        concept=Learning(200, (0.2,)),
        prompt=Searching(8, 20, 3, 0.1),
        latents=Inverting(8, 10, 4),
        relearning=Relearning(64, ("lora",), (32,)),
        restarts=1,
        vectors=(1,),
        pictures=24,
    ),
    Budget(
        phrase_pictures=8,
        inversion=Learning(300, (0.02, 0.2)),
        conditioning=Learning(120, (0.02, 0.075)),
        concept=Learning(500, (0.2,)),
        prompt=Searching(16, 40, 5, 0.1),
        latents=Inverting(16, 20, 10),
        relearning=Relearning(256, ("lora", "full"), (8, 32)),
        restarts=2,
        vectors=(1, 2),
        pictures=40,
    ),
    Budget(
        phrase_pictures=16,
        inversion=Learning(1000, (0.02, 0.2)),
        conditioning=Learning(500, (0.02, 0.075)),
        concept=Learning(5000, (0.02, 0.2)),
        prompt=Searching(50, 40, 50, 0.01),
        latents=Inverting(50, 50, 25),
        relearning=Relearning(1024, ("lora", "full"), (8, 32, 128)),
        restarts=3,
        vectors=(1, 2, 8),
        pictures=80,
        examples=32,
    ),
), strict=True))  # fmt: skip
"""By name. ``paper`` spends what the papers of the attacks that have one spent: 40 steps at each of 50 timesteps
(UnlearnDiffAtk), 5,000 steps (CCE), 50 steps of 25 (TINA). The others search at P4D's rate, .1."""


def budget_named(name: str) -> Budget:
    """The budget.

    Raises:
        SettingsError: if there is none of that name.
    """
    if name not in BUDGETS:
        raise SettingsError([f"budget is {name!r}; allowed: {', '.join(BUDGETS)}"])
    return BUDGETS[name]
