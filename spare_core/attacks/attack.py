"""``spare attack``: does what was erased stay gone? Each attack by name, the base and a plain erasure beside it.

Figures of attacks do not carry over: other pictures, judges and budgets give others. So each run attacks the base model
too, which says whether the attack is strong enough to count, and a plain erasure of the same concept
(``--method solve``), which is known to be undone by whoever holds the weights.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from spare_core.adapters.directory import StoredAdapter
from spare_core.adapters.low_rank import Adapter
from spare_core.adapters.manifest import versions
from spare_core.attacks.budgets import Budget, budget_named
from spare_core.attacks.conditioning import OnConditioning
from spare_core.attacks.inversion import Carrier, Try, invert
from spare_core.attacks.paraphrase import NAME, free_prompts, phrases
from spare_core.attacks.record import SCHEMA, Record
from spare_core.attacks.scene import Scene, wearing
from spare_core.attacks.tampering import forms, in_form
from spare_core.attacks.tokens import OnTokens
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import SettingsError
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.metrics import wilson_interval
from spare_core.evaluation.suite import Suite, domain_of
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.settings import EraseSettings, preset
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.progress import OnProgress, no_progress

BASE, PLAIN, ADAPTED = TARGETS = "base", "plain", "adapted"
CARRIERS: Final[dict[str, Callable[..., Carrier]]] = {"inversion": OnTokens, "conditioning": OnConditioning}
"""Inversions by name: what they learn."""
ATTACKS: Final = ("paraphrase", *CARRIERS, "tampering")


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
) -> dict[str, Any]:
    """Attack each of the ``erased`` concepts, or all that the adapters erase; writes ``attack.json`` and returns it.

    A run that was stopped goes on with the same call: what is done lies in ``output``.

    Raises:
        InputError: before any work: no adapter, a concept that the adapters do not erase or the suite lacks, an unknown
            attack or budget, an output folder that holds something else.
        TrainingError: if a prediction is not finite.
        StorageError: if the disk would not take a file.
    """
    spent, parts = check_request(stored, suite, erased, budget, attacks)
    scenes = [Scene(denoiser, suite, judge, domain_of(part), part.concept) for part in parts]
    for scene in scenes:
        denoiser.check_prompts(scene.prompts(spent.pictures))
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
        "plain": _plain(seed).as_dict(),
        "versions": versions(),
    }
    record = Record(output, facts)
    concepts = []
    for part, scene in zip(parts, scenes, strict=True):
        one = Besieged(denoiser, part, scene, [each.adapter for each in stored], spent, seed, record, on_progress)
        concepts.append({"concept": scene.concept, "domain": scene.domain, **one.run(chosen)})
    return record.finish({**facts, "concepts": concepts})


def check_request(
    stored: Sequence[StoredAdapter], suite: Suite, erased: Sequence[str], budget: str, attacks: Sequence[str]
) -> tuple[Budget, list[Erasure]]:
    """What may be spent and what is attacked, before a model is loaded.

    Raises:
        InputError: for an unknown budget or attack, no adapter, a concept that the adapters do not erase or that the
            suite lacks.
    """
    spent = budget_named(budget)
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown or not attacks:
        raise SettingsError([f"attack is {', '.join(unknown) or 'missing'}; allowed: {', '.join(ATTACKS)}"])
    if not stored:
        raise SettingsError(["there is no adapter to attack; give one or more with --adapter"])
    erasures = Erasures.of(*(one.manifest for one in stored))
    parts = erasures.named(erased) if erased else list(erasures)
    for part in parts:
        suite.find(part.concept, domain_of(part))
    return spent, parts


class Besieged:
    """One concept under attack on every target."""

    def __init__(
        self,
        denoiser: UNetDenoiser,
        part: Erasure,
        scene: Scene,
        adapters: list[Adapter],
        budget: Budget,
        seed: int,
        record: Record,
        on_progress: OnProgress,
    ) -> None:
        self.denoiser, self.part, self.scene, self.budget = denoiser, part, scene, budget
        self.seed, self.record, self.on_progress = seed, record, on_progress
        self._adapters: dict[str, list[Adapter]] = {BASE: [], ADAPTED: adapters}
        self._bank: Bank | None = None

    def run(self, attacks: Sequence[str]) -> dict[str, Any]:
        """What each attack brought back, by attack and target."""
        doing: dict[str, Callable[[str], Any]] = {"paraphrase": self._phrases, "tampering": self._tampering}
        doing |= {name: partial(self._inversion, name) for name in CARRIERS}
        found = {name: {target: doing[name](target) for target in TARGETS} for name in attacks}
        if "paraphrase" in found:
            base = found["paraphrase"][BASE]
            found["paraphrase"] = {target: _counted(one, base) for target, one in found["paraphrase"].items()}
        return found

    def _phrases(self, target: str) -> dict[str, Any]:
        """What is shown under each phrase."""
        scene, count = self.scene, self.budget.phrase_pictures
        prompts = {way: scene.prompts(count, text) for way, text in phrases(scene.concept, self.part.aliases).items()}
        free = {way: [text] * count for way, text in free_prompts(scene.concept).items()}

        def draw(texts: Sequence[str], seeds: Sequence[int] | None = None) -> dict[str, Any]:
            with self._on(target):
                return scene.shown(texts, seeds=seeds)

        works = {way: partial(draw, texts) for way, texts in prompts.items()}
        works |= {way: partial(draw, texts, scene.seeds(count)) for way, texts in free.items()}
        return self._each("paraphrase", target, works)

    def _tampering(self, target: str) -> dict[str, Any]:
        """The adapters in other forms, all in the same; the form that brings back most is the result. The base has
        none, and is drawn as it is."""
        named = [NAME]
        if target != BASE:
            named = self._once(target, "forms", lambda: [*forms(self._made(target)[0])])
        found = self._each("tampering", target, {form: partial(self._in_form, target, form) for form in named})
        worst = max(found, key=lambda form: found[form]["shown"])
        return {**found[worst], "worst": worst, "forms": found}

    def _in_form(self, target: str, form: str) -> dict[str, Any]:
        with wearing(self.denoiser, [in_form(one, form) for one in self._made(target)]):
            return self.scene.shown(self.scene.prompts(self.budget.pictures))

    def _inversion(self, attack: str, target: str) -> dict[str, Any]:
        """Every try; the one that brings back most is the result."""
        budget = self.budget
        rates = budget.learning(attack).rates
        tries = [Try(*each) for each in itertools.product(budget.vectors, rates, range(budget.restarts))]
        works = {one.title: partial(self._invert, attack, target, one) for one in tries}
        found = self._each(attack, target, works)
        best = max(found.values(), key=lambda each: each["shown"])
        return {**{name: best[name] for name in ("shown", "interval", "pictures")}, "best": best, "tries": found}

    def _each(self, attack: str, target: str, works: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """The result of each part of an attack on a target, made now or in an earlier run."""
        title, found = f"{attack} {target}", {}
        for i, (name, work) in enumerate(works.items()):
            self.on_progress(title, i, len(works))
            found[name] = self._once(target, f"{attack}/{name}", work)
        self.on_progress(title, len(works), len(works))
        return found

    def _once(self, target: str, name: str, work: Callable[[], Any]) -> Any:
        return self.record.once(f"{self.scene.domain}/{self.scene.concept}/{target}/{name}", work)

    @contextlib.contextmanager
    def _on(self, target: str) -> Iterator[None]:
        """The model as this target."""
        with wearing(self.denoiser, self._made(target)):
            yield

    def _made(self, target: str) -> list[Adapter]:
        """The adapters of a target; the plain erasure is made when it is first asked for."""
        if target not in self._adapters:
            settings = _plain(self.seed)
            self.on_progress("plain erasure", 0, 1)
            erased = overwrite(prepare(self.denoiser, Erasures(self.part), settings), settings)
            self._adapters[target] = [erased.state.adapter]
            self.on_progress("plain erasure", 1, 1)
        return self._adapters[target]

    def _invert(self, attack: str, target: str, one: Try) -> dict[str, Any]:
        denoiser, scene, budget, concept = self.denoiser, self.scene, self.budget, self.part.concept
        bank = self._bank = self._bank or fill_bank(denoiser, Erasures(self.part), _states(budget, self.seed))
        named = torch.tensor([bank.names[row] == concept for row in bank.forget.student.tolist()])
        states = bank.forget.take(named.nonzero().flatten())
        carrier = CARRIERS[attack](denoiser, bank, concept, scene.concept)
        steps = budget.learning(attack).steps
        with self._on(target):
            with denoiser.precise(tf32=True):
                found = invert(denoiser, states, carrier, one, steps, budget.batch_size, self.seed)
            shown = scene.shown(
                scene.prompts(budget.pictures),
                lambda prompts, resolution: carrier.of_prompts(prompts, found.vectors, resolution),
            )
        kept = self.record.keep(f"{scene.domain}-{scene.row}-{target}-{attack}-{one.title}", found.vectors)
        figures = {"left_before": found.left_before, "left": found.left, "length": found.length}
        return {**one._asdict(), **shown, **figures, "file": kept}


def _plain(seed: int) -> EraseSettings:
    """A plain erasure, whatever it leaves."""
    return EraseSettings.from_mapping({**preset("solve"), "seed": seed})


def _states(budget: Budget, seed: int) -> EraseSettings:
    """How the attacker's own trajectories are sampled; next to none of what is kept."""
    return EraseSettings(
        seed=seed, examples=budget.examples, example_steps=budget.example_steps, retain_examples=2, prior_texts=1
    )


def _counted(phrases: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Only phrases count whose pictures by the base show the concept as often as not: the others do not name it.

    ``shown`` is the share of their pictures, ``prompts`` that of the phrases that show it as often as not.
    """
    counting = [way for way, one in base.items() if one["shown"] >= 0.5]
    if not counting:
        return {"shown": None, "interval": None, "pictures": 0, "prompts": None, "worst": None, "phrases": phrases}
    pictures = sum(phrases[way]["pictures"] for way in counting)
    share = sum(phrases[way]["shown"] * phrases[way]["pictures"] for way in counting) / pictures
    return {
        "shown": share,
        "interval": list(wilson_interval(share, pictures)),
        "pictures": pictures,
        "prompts": sum(phrases[way]["shown"] >= 0.5 for way in counting) / len(counting),
        "worst": max(counting, key=lambda way: phrases[way]["shown"]),
        "phrases": phrases,
    }


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
    return f"{one['shown']:.2f} [{low:.2f}, {high:.2f}]"
