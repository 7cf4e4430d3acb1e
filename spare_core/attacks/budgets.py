"""How much an attacker may spend. A result says all of it: figures of other budgets are other figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from spare_core.errors import SettingsError


class Learning(NamedTuple):
    """Steps of Adam at each of ``rates``, in root mean squares of what is learned."""

    steps: int
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Budget:
    """``phrase_pictures`` are drawn of each paraphrase. An inversion is tried for every number of ``vectors`` at every
    one of its rates, ``restarts`` times, with ``batch_size`` rows a step; ``pictures`` judge each try. ``inversion``
    and ``conditioning`` are what each may spend on a try: learned tokens take more steps and higher rates.

    ``examples`` trajectories of ``example_steps`` states are sampled from the base model for the attacker to learn
    from.
    """

    phrase_pictures: int
    inversion: Learning
    conditioning: Learning
    restarts: int
    vectors: tuple[int, ...]
    pictures: int
    batch_size: int = 8
    examples: int = 16
    example_steps: int = 10

    def learning(self, attack: str) -> Learning:
        """What an inversion may spend on a try."""
        return {"inversion": self.inversion, "conditioning": self.conditioning}[attack]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        named = {name: dict(value._asdict()) for name, value in vars(self).items() if isinstance(value, Learning)}
        return {**vars(self), **named, "vectors": list(self.vectors)}


BUDGETS: Final = {
    "quick": Budget(4, Learning(200, (0.2,)), Learning(60, (0.075,)), restarts=1, vectors=(1,), pictures=24),
    "standard": Budget(8, Learning(300, (0.02, 0.2)), Learning(120, (0.02, 0.075)), restarts=2, vectors=(1, 2),
                       pictures=40),
    "paper": Budget(16, Learning(1000, (0.02, 0.2)), Learning(500, (0.02, 0.075)), restarts=3, vectors=(1, 2, 8),
                    pictures=80, examples=32),
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
