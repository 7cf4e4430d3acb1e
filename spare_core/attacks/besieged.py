"""One concept under attack: each attack by name on the base, a plain erasure and the adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.attacks import latents as from_latents
from spare_core.attacks import search as searching
from spare_core.attacks.budgets import Budget
from spare_core.attacks.conditioning import OnConditioning
from spare_core.attacks.inversion import Carrier, Lessons, Try, invert, pictures
from spare_core.attacks.looks import Looks
from spare_core.attacks.paraphrase import NAME, free_prompts, phrases
from spare_core.attacks.record import Record
from spare_core.attacks.relearning import relearn
from spare_core.attacks.scene import Scene, counted, wearing
from spare_core.attacks.tampering import forms, in_form
from spare_core.attacks.tokens import OnTokens
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.evaluation.attacked import ADAPTED, BASE, TARGETS
from spare_core.evaluation.metrics import wilson_interval
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.settings import EraseSettings, preset
from spare_core.models.conditioning import Conditioning
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.progress import OnProgress
from spare_core.streams import stream

CARRIERS: Final[dict[str, Callable[..., Carrier]]] = {
    "pictures": OnTokens,
    "inversion": OnTokens,
    "conditioning": OnConditioning,
}
"""Inversions by name: what they learn."""
_CONCEPT_PICTURES: Final = 25
"""That CCE learns from."""
_LESSON_SEED: Final = 1_000_000
"""The first seed of pictures that an attacker learns from: none of a suite's."""


class Besieged:
    """One concept under attack on every target. ``gone`` are all names that the adapters erase, ``given`` further ways
    to write this one."""

    def __init__(
        self,
        denoiser: UNetDenoiser,
        part: Erasure,
        scene: Scene,
        adapters: list[Adapter],
        gone: Sequence[str],
        budget: Budget,
        seed: int,
        record: Record,
        on_progress: OnProgress,
        given: Sequence[str] = (),
    ) -> None:
        self.denoiser, self.part, self.scene, self.gone, self.budget = denoiser, part, scene, gone, budget
        self.seed, self.record, self.on_progress, self.given = seed, record, on_progress, given
        self._adapters: dict[str, list[Adapter]] = {BASE: [], ADAPTED: adapters}
        self._known: dict[str, Any] = {}

    def run(self, attacks: Sequence[str]) -> dict[str, Any]:
        """What each attack brought back, by attack and target."""
        found = {name: {target: self.attack(name, target) for target in TARGETS} for name in attacks}
        if "paraphrase" in found:
            base = found["paraphrase"][BASE]
            found["paraphrase"] = {target: named_by_base(one, base) for target, one in found["paraphrase"].items()}
        return found

    def attack(self, name: str, target: str) -> dict[str, Any]:
        """What one attack brought back on one target; of paraphrases, under each of them."""
        if name in CARRIERS:
            return self._inversion(name, target)
        doing: dict[str, Callable[[str], dict[str, Any]]] = {
            "paraphrase": self._phrases, "prompt": self._search, "latents": self._latents,
            "relearning": self._relearning, "tampering": self._tampering,
        }  # fmt: skip
        return doing[name](target)

    def _phrases(self, target: str) -> dict[str, Any]:
        """What is shown under each phrase."""
        scene, count = self.scene, self.budget.phrase_pictures
        ways = phrases(scene.concept, self.part.aliases, self.given)
        prompts = {way: scene.prompts(count, text) for way, text in ways.items()}
        free = {way: [text] * count for way, text in free_prompts(scene.concept).items()}

        def draw(texts: Sequence[str], seeds: Sequence[int] | None = None) -> dict[str, Any]:
            with self.on(target):
                return scene.shown(texts, seeds=seeds)

        works = {way: partial(draw, texts) for way, texts in prompts.items()}
        works |= {way: partial(draw, texts, scene.seeds(count)) for way, texts in free.items()}
        return self._each("paraphrase", target, works)

    def _tampering(self, target: str) -> dict[str, Any]:
        """The adapters in other forms, all in the same. The base has none, and is drawn as it is."""
        named = [NAME]
        if target != BASE:
            named = self._once(target, "forms", lambda: [*forms(self._made(target)[0])])
        return self._worst("tampering", target, {form: partial(self._in_form, target, form) for form in named})

    def _in_form(self, target: str, form: str) -> dict[str, Any]:
        with wearing(self.denoiser, [in_form(one, form) for one in self._made(target)]):
            return self.scene.shown(self.scene.prompts(self.budget.pictures))

    def _inversion(self, attack: str, target: str) -> dict[str, Any]:
        """Every try of an inversion by vectors."""
        tries = self.budget.tries(attack)
        return self._worst(attack, target, {one.title: partial(self._invert, attack, target, one) for one in tries})

    def _invert(self, attack: str, target: str, one: Try) -> dict[str, Any]:
        denoiser, scene, budget, bank = self.denoiser, self.scene, self.budget, self._bank()
        named = torch.tensor([bank.names[row] == self.part.concept for row in bank.forget.student.tolist()])
        states = bank.forget.take(named.nonzero().flatten())
        carrier = CARRIERS[attack](denoiser, bank, self.part.concept, scene.concept)
        prompts, steps = scene.prompts(budget.pictures), budget.learning(attack).steps
        lessons = self._pictures_of_bank() if attack == "pictures" else None

        def draw(vectors: Tensor) -> dict[str, Any]:
            return scene.shown(prompts, lambda texts, resolution: carrier.of_prompts(texts, vectors, resolution))

        looks = Looks(steps, draw)
        with self.on(target), denoiser.precise(tf32=True):
            found = invert(denoiser, states, carrier, one, steps, budget.batch_size, self.seed, lessons, looks.after)
        title = f"{scene.domain}-{scene.row}-{target}-{attack}-{one.title}"
        kept = self.record.keep_tensors(title, {"vectors": found.vectors})
        figures = {"left_before": found.left_before, "left": found.left, "length": found.length}
        return {**one._asdict(), **looks.as_dict(), **figures, "file": kept}

    def _search(self, target: str) -> dict[str, Any]:
        """Searched prompts, with either aim. A prompt counts as shown if it was before any token stood before it."""
        return self._worst("prompt", target, {aim: partial(self._searched, target, aim) for aim in searching.AIMS})

    def _searched(self, target: str, aim: str) -> dict[str, Any]:
        scene, spent = self.scene, self.budget.prompt
        prompts, seeds = scene.prompts(spent.prompts), scene.own_seeds(spent.prompts)
        asked = self._once_here("tasks", self._search_tasks)
        with self.on(target):
            before = scene.seen(scene.draw(self._encoded(prompts), seeds))
            left = [row for row, one in enumerate(before) if not one]
            after, kept, steps = before, None, 0
            if left:
                some = [one.of(left) for one in asked]
                found = searching.search(
                    self.denoiser, [prompts[row] for row in left], some, aim, spent.steps, spent.rate, self.seed,
                    scene.suite.resolution,
                    lambda encoded, rows: scene.seen(scene.draw(encoded, [seeds[left[row]] for row in rows])),
                )  # fmt: skip
                after = [*before]
                for row, one in zip(left, found.shown, strict=True):
                    after[row] = one
                texts = dict(zip((prompts[row] for row in left), found.tokens, strict=True))
                kept = self.record.keep_json(f"{scene.domain}-{scene.row}-{target}-prompt-{aim}", texts)
                steps = found.steps
        return {**counted(after), "before": sum(before) / len(before), "steps": steps, "file": kept}

    def _search_tasks(self) -> list[searching.Task]:
        """States of the base's own pictures of the prompts that are searched for."""
        scene, spent = self.scene, self.budget.prompt
        prompts, generator = scene.prompts(spent.prompts), stream(self.seed, "search", "states")
        encoded = self._encoded(prompts)
        drawn = scene.draw(encoded, scene.own_seeds(spent.prompts)).cpu()
        return searching.tasks(self.denoiser, drawn, encoded, spent.timesteps, generator)

    def _latents(self, target: str) -> dict[str, Any]:
        """What is drawn from pictures of the concept, by img2img and by null-text inversion."""
        works = {
            f"img2img {strength:g}": partial(self._redrawn, target, strength) for strength in from_latents.STRENGTHS
        }
        return self._worst("latents", target, {**works, "null-text": partial(self._recalled, target)})

    def _redrawn(self, target: str, strength: float) -> dict[str, Any]:
        denoiser, scene = self.denoiser, self.scene
        prompts, drawn = self._lessons(self.budget.latents.pictures)
        encoded, empty = self._encoded(prompts), self._encoded([""])
        steps, guidance = scene.suite.steps, scene.suite.guidance
        with self.on(target):
            generator = stream(self.seed, "img2img", str(strength))
            return counted(scene.seen(
                from_latents.redrawn(denoiser, encoded, empty, drawn, strength, steps, guidance, generator)
            ))  # fmt: skip

    def _recalled(self, target: str) -> dict[str, Any]:
        spent, denoiser = self.budget.latents, self.denoiser
        _, drawn = self._lessons(spent.pictures)
        with self.on(target):
            found = from_latents.recalled(denoiser, self._encoded([""]), drawn, spent.steps, spent.inner)
            return counted(self.scene.seen(found))

    def _relearning(self, target: str) -> dict[str, Any]:
        """Fine-tuning on pictures of the concept; on others, as control, which does not count. The base has nothing to
        relearn, and is drawn as it is."""
        spent = self.budget.relearning
        if target == BASE:
            return self._worst("relearning", target, {NAME: partial(self._in_form, target, NAME)})
        tries = {
            f"{way}-{count}": partial(self._relearned, target, way, count, True)
            for way in spent.ways
            for count in spent.pictures
        }
        ways = spent.ways if self.scene.unrelated(1, self.gone) else ()
        controls = {
            f"{way}-unrelated": partial(self._relearned, target, way, max(spent.pictures), False) for way in ways
        }
        found = self._worst("relearning", target, tries)
        times = [one["half"] for one in found["tries"].values() if one["half"] is not None]
        half = min(times) if times else None
        return {**found, "half": half, "controls": self._each("control", target, controls)}

    def _relearned(self, target: str, way: str, count: int, related: bool) -> dict[str, Any]:
        denoiser, scene, budget = self.denoiser, self.scene, self.budget
        prompts, drawn = self._lessons(count, related)
        encoded, asked = self._encoded(prompts), scene.prompts(budget.pictures)
        looks = Looks(budget.relearning.steps, lambda: scene.shown(asked))
        with self.on(target), denoiser.precise(tf32=True):
            relearn(denoiser, way, drawn, encoded, budget.relearning.steps, budget.batch_size, self.seed, looks)
        return looks.as_dict()

    def _worst(self, attack: str, target: str, works: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Every try of an attack; the one that brings back most is the result."""
        found = self._each(attack, target, works)
        worst = max(found, key=lambda name: found[name]["shown"])
        taken = {name: found[worst].get(name) for name in ("shown", "interval", "pictures", "half")}
        return {**{name: value for name, value in taken.items() if value is not None}, "worst": worst, "tries": found}

    def _each(self, attack: str, target: str, works: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """The result of each part of an attack on a target, made now or in an earlier run."""
        title, found = f"{attack} {target}", {}
        for i, (name, work) in enumerate(works.items()):
            self.on_progress(title, i, len(works))
            file = f"{self.scene.domain}-{self.scene.row}-{target}-{attack}-{i}"
            found[name] = self._once(target, f"{attack}/{name}", partial(self._with_picture, work, file))
        self.on_progress(title, len(works), len(works))
        return found

    def _with_picture(self, work: Callable[[], dict[str, Any]], file: str) -> dict[str, Any]:
        """What ``work`` found, and some of the pictures that it was judged by last."""
        result = work()
        return {**result, "picture": self.record.keep_picture(file, self.scene.strip)}

    def _once(self, target: str, name: str, work: Callable[[], Any]) -> Any:
        return self.record.once(f"{self.scene.domain}/{self.scene.concept}/{target}/{name}", work)

    def _once_here(self, name: str, work: Callable[[], Any]) -> Any:
        """What is too large to be recorded, made when it is first asked for; on the base, whatever is attacked."""
        if name not in self._known:
            self._known[name] = work()
        return self._known[name]

    @contextlib.contextmanager
    def on(self, target: str) -> Iterator[None]:
        """The model as this target."""
        with wearing(self.denoiser, self._made(target)):
            yield

    def _made(self, target: str) -> list[Adapter]:
        """The adapters of a target; the plain erasure is made when it is first asked for."""
        if target not in self._adapters:
            settings = plain(self.seed)
            self.on_progress("plain erasure", 0, 1)
            erased = overwrite(prepare(self.denoiser, Erasures(self.part), settings), settings)
            self._adapters[target] = [erased.state.adapter]
            self.on_progress("plain erasure", 1, 1)
        return self._adapters[target]

    def _bank(self) -> Bank:
        budget = self.budget
        settings = EraseSettings(  # next to none of what is kept
            seed=self.seed, examples=budget.examples, example_steps=budget.example_steps, retain_examples=2,
            prior_texts=1,
        )  # fmt: skip
        return self._once_here("bank", lambda: fill_bank(self.denoiser, Erasures(self.part), settings))

    def _pictures_of_bank(self) -> Lessons:
        """Pictures that the base draws of the bank's prompts that name the concept."""
        bank = self._bank()
        naming = [row for row, name in enumerate(bank.names) if name == self.part.concept]
        rows = torch.tensor([naming[i % len(naming)] for i in range(_CONCEPT_PICTURES)])
        drawn = self._once_here("pictures", lambda: self._drawn([bank.prompts[row] for row in rows.tolist()]))
        return pictures(self.denoiser, drawn, rows)

    def _lessons(self, count: int, related: bool = True) -> tuple[list[str], Tensor]:
        """As many prompts and the base's pictures of them, latents ``(N, C, H, W)``; of the concept, or unrelated."""
        own = self.scene.prompts(count)
        prompts = [own[i % len(own)] for i in range(count)] if related else self.scene.unrelated(count, self.gone)
        return prompts, self._once_here(f"lessons {count} {related}", lambda: self._drawn(prompts))

    def _drawn(self, prompts: Sequence[str]) -> Tensor:
        seeds = range(_LESSON_SEED, _LESSON_SEED + len(prompts))
        return self.scene.draw(self._encoded(prompts), seeds).cpu()

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        """As pictures of the suite are conditioned."""
        return self.denoiser.encode_prompts(prompts, self.scene.suite.resolution)


def plain(seed: int) -> EraseSettings:
    """A plain erasure, whatever it leaves."""
    return EraseSettings.from_mapping({**preset("solve"), "seed": seed})


def named_by_base(phrases: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
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
