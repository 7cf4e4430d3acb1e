"""How much an attacker may spend. A result says all of it: figures of other budgets are other figures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from spare_core.errors import SettingsError


@dataclass(frozen=True)
class Budget:
    """``phrase_pictures`` are drawn of each paraphrase. An inversion is tried for every number of ``vectors`` at every
    one of ``rates``, ``restarts`` times, ``steps`` steps of ``batch_size`` rows each; ``pictures`` judge each try.

    Rates are Adam's, in root mean squares of the embedding that is moved. ``examples`` trajectories of
    ``example_steps`` states are sampled from the base model for the attacker to learn from.
    """

    phrase_pictures: int
    steps: int
    rates: tuple[float, ...]
    restarts: int
    vectors: tuple[int, ...]
    pictures: int
    batch_size: int = 8
    examples: int = 16
    example_steps: int = 10

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}


BUDGETS: Final = {
    "quick": Budget(phrase_pictures=4, steps=60, rates=(0.075,), restarts=1, vectors=(1,), pictures=24),
    "standard": Budget(phrase_pictures=8, steps=120, rates=(0.02, 0.075), restarts=2, vectors=(1, 2), pictures=40),
    "paper": Budget(phrase_pictures=16, steps=500, rates=(0.02, 0.075), restarts=3, vectors=(1, 2, 8), pictures=80,
                    examples=32),
}  # fmt: skip
"""By name. No ``paper`` is one paper's: protocols that are come with the attacks of their names."""


def budget_named(name: str) -> Budget:
    """The budget.

    Raises:
        SettingsError: if there is none of that name.
    """
    if name not in BUDGETS:
        raise SettingsError([f"budget is {name!r}; allowed: {', '.join(BUDGETS)}"])
    return BUDGETS[name]
