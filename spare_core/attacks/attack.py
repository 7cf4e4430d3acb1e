"""``spare attack``: does what was erased stay gone? Each attack by name, the base and a plain erasure beside it.

Figures of attacks do not carry over: other pictures, judges and budgets give others. So each run attacks the base model
too, which says whether the attack is strong enough to count, and a plain erasure of the same concept
(``--method solve``), which is known to be undone by whoever holds the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spare_core.adapters.directory import StoredAdapter
from spare_core.adapters.manifest import versions
from spare_core.attacks.besieged import Besieged, plain
from spare_core.attacks.budgets import Budget, budget_named
from spare_core.attacks.record import SCHEMA, Record
from spare_core.attacks.scene import Scene, wearing
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import SettingsError
from spare_core.evaluation.attacked import ATTACKS, TARGETS
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.suite import Suite, domain_of
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.progress import OnProgress, no_progress


def attack(
    denoiser: UNetDenoiser,
    base_digest: str,
    stored: Sequence[StoredAdapter],
    suite: Suite,
    judge: Judge,
    erased: Sequence[str],
    output: Path,
    budget: str = "standard",
    attacks: Sequence[str] = ATTACKS,
    seed: int = 1,
    on_progress: OnProgress = no_progress,
    phrases: Sequence[str] = (),
) -> dict[str, Any]:
    """Attack each of the ``erased`` concepts, or all that the adapters erase; writes ``attack.json`` and returns it.
    ``phrases`` are further ways to write the only one: descriptions, other languages.

    A run that was stopped goes on with the same call: what is done lies in ``output``.

    Raises:
        InputError: before any work: no adapter, a concept that the adapters do not erase or the suite lacks, an unknown
            attack or budget, an output folder that holds something else.
        TrainingError: if a prediction is not finite.
        StorageError: if the disk would not take a file.
    """
    spent, parts = check_request(stored, suite, erased, budget, attacks, phrases)
    scenes = [Scene(denoiser, suite, judge, domain_of(part), part.concept) for part in parts]
    for scene in scenes:
        denoiser.check_prompts([*scene.prompts(spent.pictures), *(scene.prompts(1, text)[0] for text in phrases)])
    with wearing(denoiser, [one.adapter for one in stored]):
        pass
    chosen = [name for name in ATTACKS if name in attacks]
    facts = {
        "schema": SCHEMA,
        "model": denoiser.describe(),
        "base_digest": base_digest,
        "adapters": [one.sha256 for one in stored],
        "suite": suite.name,
        "sampling": {"steps": suite.steps, "guidance": float(suite.guidance), "resolution": suite.resolution},
        "judge": {"name": judge.name, "digest": judge.digest},
        "erased": [part.concept for part in parts],
        "budget": {"name": budget, **spent.as_dict()},
        "seed": seed,
        "attacks": chosen,
        "phrases": list(phrases),
        "plain": plain(seed).as_dict(),
        "versions": versions(),
    }
    record = Record(output, facts)
    adapters, gone = [one.adapter for one in stored], Erasures.of(*(one.manifest for one in stored)).names
    concepts = []
    for part, scene in zip(parts, scenes, strict=True):
        one = Besieged(denoiser, part, scene, adapters, gone, spent, seed, record, on_progress, phrases)
        concepts.append({"concept": scene.concept, "domain": scene.domain, **one.run(chosen)})
    return record.finish({**facts, "concepts": concepts})


def check_request(
    stored: Sequence[StoredAdapter],
    suite: Suite,
    erased: Sequence[str],
    budget: str,
    attacks: Sequence[str],
    phrases: Sequence[str] = (),
) -> tuple[Budget, list[Erasure]]:
    """What may be spent and what is attacked, before a model is loaded.

    Raises:
        InputError: for an unknown budget or attack, no adapter, a concept that the adapters do not erase or that the
            suite lacks, phrases that are empty or of who knows which concept.
    """
    spent = budget_named(budget)
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown or not attacks:
        raise SettingsError([f"attack is {', '.join(unknown) or 'missing'}; allowed: {', '.join(ATTACKS)}"])
    if not stored:
        raise SettingsError(["there is no adapter to attack; give one or more with --adapter"])
    erasures = Erasures.of(*(one.manifest for one in stored))
    parts = erasures.named(erased) if erased else list(erasures)
    if phrases and len(parts) > 1:
        names = ", ".join(part.concept for part in parts)
        raise SettingsError([f"phrase {phrases[0]!r} is of which of {names}? give that one with --erased"])
    if not all(text.strip() for text in phrases):
        raise SettingsError(["a phrase is empty; give words that people may write for the concept"])
    for part in parts:
        suite.find(part.concept, domain_of(part))
    return spent, parts


def table(report: dict[str, Any]) -> str:
    """Markdown for people: the share of pictures that show the concept, by attack and target."""
    lines = ["| erased | attack | base | plain erasure | adapters |", "|---|---|---|---|---|"]
    for one in report["concepts"]:
        for name in report["attacks"]:
            cells = " | ".join(_cell(one[name][target]) for target in TARGETS)
            lines.append(f"| {one['concept']} | {name} | {cells} |")
    return "\n".join(lines)


def _cell(one: dict[str, Any]) -> str:
    if one["shown"] is None:
        return "no phrase names it"
    low, high = one["interval"]
    after = f", half after {one['half']} steps" if one.get("half") else ""
    return f"{one['shown']:.2f} [{low:.2f}, {high:.2f}]{after}"
