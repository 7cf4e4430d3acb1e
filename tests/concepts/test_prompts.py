"""Both sides' prompts come from one template and a split of contexts that no seed changes."""

from __future__ import annotations

import dataclasses

import pytest

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import EMPTY, NULL, Pair, Prompt, PromptPlan, Purpose, all_prompts, contexts_for

CONTEXTS = tuple(f"a {name}" for name in ("cat", "dog", "hat", "box", "cup", "toy", "car", "map", "pen", "jar"))
ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", CONTEXTS)
ERASURES = Erasures(ERASURE)


def test_each_context_comes_twice_so_that_concept_and_surrogate_may_drive_it() -> None:
    drawn = PromptPlan(ERASURES, 0, "train").forget(6)
    assert [(pair.concept.name, pair.surrogate.name) for pair in drawn] == [("Neon", "Photo")] * 6
    assert drawn[::2] == drawn[1::2] and len(set(drawn)) == 3
    assert all(pair.concept.context == pair.surrogate.context for pair in drawn)


def test_everything_kept_is_there_however_few_are_asked_for() -> None:
    for count, expected in ((1, 3), (3, 3), (8, 8)):
        drawn = PromptPlan(ERASURES, 0, "train").retain(count)
        assert len(drawn) == expected
        assert {prompt.name for prompt in drawn} == {"Photo", "Rust", "Winter"}


def test_contexts_held_out_are_never_trained_on_under_any_seed() -> None:
    def contexts(purpose: Purpose) -> set[str]:
        plans = [PromptPlan(ERASURES, seed, purpose) for seed in (0, 5)]
        return {prompt.context for plan in plans for pair in plan.pairs(ERASURE) for prompt in pair}

    trained, chosen_by, reported = contexts("train"), contexts("choose"), contexts("report")
    assert (len(trained), len(chosen_by), len(reported)) == (6, 2, 2)
    assert trained | chosen_by | reported == {*CONTEXTS}
    assert contexts("solve") == trained | chosen_by


@pytest.mark.parametrize("purpose", ["train", "choose", "report", "solve"])
def test_fewer_than_five_contexts_serve_for_everything(purpose: Purpose) -> None:
    assert sorted(contexts_for(purpose, CONTEXTS[:4])) == sorted(CONTEXTS[:4])


def test_generic_texts_are_of_the_models_words_and_never_mention_what_is_erased() -> None:
    words = ("neon", "rust", "winter", "house", "boat")
    texts = [prompt.context for prompt in PromptPlan(ERASURES, 0, "choose", words).generic(20)]
    assert len(set(texts)) > 10
    assert all("neon" not in text for text in texts)
    assert any("rust" in text for text in texts), "what is kept may come"
    plan = PromptPlan(ERASURES, 0, "choose", words)
    assert [plan.text(prompt) for prompt in plan.generic(20)] == texts
    assert PromptPlan(ERASURES, 0, "choose").generic(20) == []


def test_a_concept_is_seen_in_other_contexts_before_any_comes_again() -> None:
    drawn = PromptPlan(ERASURES, 0, "train").retain(24)
    assert all(len({p.context for p in drawn if p.name == name}) == 6 for name in ("Photo", "Rust", "Winter"))


def test_prompts_are_the_template_filled_in() -> None:
    plan = PromptPlan(ERASURES, 0, "train")
    ((prompt, surrogate),) = plan.forget(1)
    assert plan.text(prompt) == f"{prompt.context} in Neon"
    assert plan.text(EMPTY) == NULL
    assert plan.text(surrogate) == f"{prompt.context} in Photo"
    assert plan.text(prompt) in all_prompts(ERASURES)
    assert NULL in all_prompts(ERASURES) and len(all_prompts(ERASURES)) == 1 + 4 * len(CONTEXTS)


STYLES, OBJECTS = ("Neon", "Rust", "Photo", "Ink"), ("Cat", "Dog", "Hat", "Cup")


def of_grid(concept: str, surrogate: str) -> Erasure:
    """Styles in objects and objects in styles, as Canvas has them; all the others of its kind are kept."""
    is_style = concept in STYLES
    own, others = (STYLES, OBJECTS) if is_style else (OBJECTS, STYLES)
    template = "a {context} in {concept}" if is_style else "a {concept} in {context}"
    kept = tuple(name for name in own if name not in (concept, surrogate))
    return Erasure(concept, surrogate, "style" if is_style else "object", kept, template, others)


GRID = Erasures(of_grid("Neon", "Rust"), of_grid("Cat", "Dog"), of_grid("Rust", "Ink"))


@pytest.mark.parametrize("heldout", [False, True])
def test_of_several_each_is_overwritten_by_prompts_that_name_none_of_them(heldout: bool) -> None:
    """Those of two erased concepts in one prompt too; a surrogate that is erased is followed to its own."""
    plan = PromptPlan(GRID, 0, heldout)
    pairs = {plan.text(pair.concept): plan.text(pair.surrogate) for pair in plan.forget(24)}
    assert pairs["a Cat in Neon"] == pairs["a Cat in Rust"] == "a Dog in Ink"
    assert (pairs["a Hat in Neon"], pairs["a Cat in Photo"]) == ("a Hat in Ink", "a Dog in Photo")
    assert len(pairs) == 3 * 4 - 2


@pytest.mark.parametrize(("count", "each"), [(1, 1), (2, 2), (6, 2), (7, 3), (12, 4)])
def test_several_share_what_is_drawn_and_each_gets_both_drivers(count: int, each: int) -> None:
    """In contexts of its own where only one is drawn of each."""
    forget = PromptPlan(GRID, 0, "train").forget(count)
    names = [pair.concept.name for pair in forget]
    assert names == [name for name in ("Neon", "Cat", "Rust") for _ in range(each)]
    if each == 2:
        assert forget[0] == forget[1]
        assert forget[0].concept.context != forget[4].concept.context


def test_elsewhere_is_any_word_but_those_of_contexts_that_are_held_out() -> None:
    """Under every seed the same; what a request erases is no context; names take turns."""
    erasures = Erasures(dataclasses.replace(ERASURE, aliases=("glow",)))
    (part,) = erasures
    words = [*(word for context in CONTEXTS for word in context.split()), "moon", "neon", "wagon", "glow", "lake"]
    found: dict[Purpose, set[str]] = {}
    for purpose in ("train", "solve"):
        plan = PromptPlan(erasures, 0, purpose, words)
        pairs = plan.pairs_elsewhere(part, 100)
        assert pairs == PromptPlan(erasures, 5, purpose, words).pairs_elsewhere(part, 100)
        assert {pair.surrogate.context for pair in pairs} == {pair.concept.context for pair in pairs}
        assert {pair.concept.name for pair in pairs} == {"Neon", "glow"}
        assert plan.text(pairs[0].concept) == part.prompt(pairs[0].concept.name, pairs[0].concept.context)
        found[purpose] = {pair.concept.context for pair in pairs}
    others = {word for word in words if word not in ("neon", "glow")}
    report, choose = ({*" ".join(contexts_for(held_out, CONTEXTS)).split()} for held_out in ("report", "choose"))
    assert found["train"] == others - report - choose
    assert found["solve"] == others - report
    assert len(PromptPlan(erasures, 0, "train", words).pairs_elsewhere(part, 4)) == 4
    bare = Erasures(Erasure("Neon", "Photo", "style", (), "{concept}", ()))
    assert PromptPlan(bare, 0, "train", words).pairs_elsewhere(bare.parts[0], 4) == []


def test_every_name_of_a_concept_is_overwritten() -> None:
    erasures = Erasures(dataclasses.replace(of_grid("Neon", "Photo"), aliases=("glow", "tubes")))
    plan = PromptPlan(erasures, 0, "train")
    (part,) = erasures
    assert {pair.concept.name for pair in plan.pairs(part)} == {"Neon", "glow", "tubes"}
    forget = plan.forget(7)
    assert [pair.concept.name for pair in forget] == ["Neon"] * 3 + ["glow"] * 3 + ["tubes"] * 3
    assert {pair.surrogate.name for pair in forget} == {"Photo"}
    assert {plan.text(prompt) for pair in forget for prompt in pair} <= set(all_prompts(erasures))


@pytest.mark.parametrize("heldout", [False, True])
def test_of_several_nothing_that_is_erased_is_held(heldout: bool) -> None:
    plan = PromptPlan(GRID, 0, heldout)
    held = {plan.text(prompt) for prompt in plan.retain(100)}
    styled = {f"a {name} in {style}" for name in ("Dog", "Hat", "Cup") for style in ("Ink", "Photo")}
    assert held == styled
    assert len(plan.kept()) == 2 + 3


def test_every_prompt_of_several_is_known_beforehand() -> None:
    plan = PromptPlan(GRID, 0, "train")
    used = [*(prompt for pair in plan.forget(24) for prompt in pair), *plan.retain(100)]
    beside = plan.pairs_beside(plan.retain(5))
    used += [prompt for pair in beside for prompt in pair]
    assert {plan.text(prompt) for prompt in used} <= set(all_prompts(GRID))
    assert {pair.concept.name for pair in beside} == {"Neon", "Cat", "Rust"}


def test_an_erased_contexts_surrogate_is_known_beforehand_where_it_is_no_context_itself() -> None:
    style = Erasure("Neon", "Ink", "style", (), "a {context} in {concept}", ("Cat", "Hat"))
    erasures = Erasures(style, Erasure("Cat", "Wolf", "object", (), "a {concept}", ()))
    plan = PromptPlan(erasures, 0, "train")
    used = {plan.text(pair.surrogate) for pair in plan.pairs(style)}
    assert "a Wolf in Ink" in used and used <= set(all_prompts(erasures))


def test_where_every_context_is_erased_the_contexts_surrogates_serve() -> None:
    both = [of_grid("Cat", "Dog"), *(of_grid(name, "Ink") for name in ("Neon", "Rust", "Photo"))]
    erasures = Erasures(*both, Erasure("Cup", "Hat", "object", (), "a {concept} in {context}", ("Neon", "Rust")))
    plan = PromptPlan(erasures, 0, "train")
    assert "a Hat in Ink" in {plan.text(prompt) for prompts in plan.kept() for prompt in prompts}
    assert all("Neon" not in plan.text(prompt) for prompts in plan.kept() for prompt in prompts)


def test_beside_what_is_kept_names_with_one_surrogate_take_its_prompts_in_turn() -> None:
    erasures = Erasures(*(Erasure(name, "Photo", "style", ("Rust",), "{context} in {concept}", CONTEXTS)
                          for name in ("Neon", "Winter", "Mosaic")))  # fmt: skip
    kept = [Prompt("Photo", "a cat"), Prompt("Rust", "a dog"), Prompt("Photo", "a hat")]
    assert PromptPlan(erasures, 0, "train").forget_beside(kept) == [
        (Pair(Prompt("Neon", "a cat"), Prompt("Photo", "a cat")), 0),
        (Pair(Prompt("Winter", "a hat"), Prompt("Photo", "a hat")), 2),
        (Pair(Prompt("Mosaic", "a cat"), Prompt("Photo", "a cat")), 0),
    ]
