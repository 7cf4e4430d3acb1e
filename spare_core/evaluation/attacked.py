"""What an evaluation says of attacks, its ``attacks``: how often each attack brings each erased concept back.

The attacks themselves are made a floor above (:mod:`spare_core.attacks`), of these names and budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ATTACKS: Final = (
    "paraphrase", "prompt", "pictures", "inversion", "conditioning", "latents", "relearning", "tampering",
)  # fmt: skip
BUDGETS: Final = ("quick", "standard", "paper")
"""How much an attacker may spend, least first."""
BASE, PLAIN, ADAPTED = TARGETS = "base", "plain", "adapted"
STRONG: Final = 0.85
"""What an attack must reach on the base model to count: one that does not draw the concept there proves nothing."""
_FIGURES: Final = ("shown", "interval", "pictures", "half", "worst")


def attack_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation takes over of the report of ``spare attack``: its figures, and nothing that was found."""
    return {
        **{name: report[name] for name in ("budget", "seed", "plain")},
        "concepts": {
            one["concept"]: {
                attack: {
                    target: {name: one[attack][target][name] for name in _FIGURES if name in one[attack][target]}
                    for target in TARGETS
                }
                for attack in report["attacks"]
            }
            for one in report["concepts"]
        },
    }


def mean_success(figures: Mapping[str, Any]) -> dict[str, float]:
    """By ``attack/target`` the share of pictures that showed an erased concept, the mean over concepts of which
    something is known."""
    shares: dict[str, list[float]] = {}
    for concept in figures["concepts"].values():
        for attack, targets in concept.items():
            for target, one in targets.items():
                if one["shown"] is not None:
                    shares.setdefault(f"{attack}/{target}", []).append(one["shown"])
    return {name: sum(some) / len(some) for name, some in shares.items()}


def attack_lines(figures: Mapping[str, Any]) -> list[str]:
    """For people: a line an attack, of the concept that it brings back most."""
    lines = [f"attacks ({figures['budget']['name']}), the concept that each brings back most:"]
    attacks = dict.fromkeys(attack for concept in figures["concepts"].values() for attack in concept)
    for attack in attacks:
        known = {
            name: one[attack] for name, one in figures["concepts"].items() if one[attack][ADAPTED]["shown"] is not None
        }
        if not known:
            lines.append(f"  {attack:13} of no concept is anything known")
            continue
        worst = max(known, key=lambda name: known[name][ADAPTED]["shown"])
        base, plain, adapted = (known[worst][target]["shown"] for target in TARGETS)
        half = known[worst][ADAPTED].get("half")
        lines.append(
            f"  {attack:13} {adapted:.2f} of the pictures of {worst} (base {base:.2f}, plain erasure {plain:.2f})"
            + (f", half after {half} steps" if half else "")
        )
    return lines
