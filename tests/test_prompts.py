"""Both sides' prompts come from one template and a split of contexts that no seed changes."""

from __future__ import annotations

from spare_core.concept import Erasure
from spare_core.prompts import EMPTY, NULL, PromptPlan, all_prompts

CONTEXTS = tuple(f"a {name}" for name in ("cat", "dog", "hat", "box", "cup", "toy", "car", "map", "pen", "jar"))
ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", CONTEXTS)


def test_half_of_the_forget_side_is_the_concepts_and_half_the_surrogates() -> None:
    drawn = PromptPlan(ERASURE, 0, heldout=False).forget(6)
    assert [prompt.name for prompt in drawn] == ["Neon", "Photo"] * 3
    assert [prompt.context for prompt in drawn[::2]] == [prompt.context for prompt in drawn[1::2]]


def test_everything_kept_is_there_however_few_are_asked_for() -> None:
    for count, expected in ((1, 3), (3, 3), (8, 8)):
        drawn = PromptPlan(ERASURE, 0, heldout=False).retain(count)
        assert len(drawn) == expected
        assert {prompt.name for prompt in drawn} == {"Photo", "Rust", "Winter"}


def test_contexts_held_out_are_never_trained_on_under_any_seed() -> None:
    trained = {context for seed in (0, 5) for context in PromptPlan(ERASURE, seed, heldout=False).contexts}
    held_out = {context for seed in (0, 5) for context in PromptPlan(ERASURE, seed, heldout=True).contexts}
    assert len(held_out) == 2 and len(trained) == 8 and not trained & held_out


def test_a_concept_is_seen_in_other_contexts_before_any_comes_again() -> None:
    drawn = PromptPlan(ERASURE, 0, heldout=False).retain(24)
    assert all(len({p.context for p in drawn if p.name == name}) == 8 for name in ("Photo", "Rust", "Winter"))


def test_prompts_are_the_template_filled_in() -> None:
    plan = PromptPlan(ERASURE, 0, heldout=False)
    (prompt,) = plan.forget(1)
    assert plan.text(prompt) == f"{prompt.context} in Neon"
    assert plan.text(EMPTY) == NULL
    assert [p.name for p in plan.of_surrogate([prompt])] == ["Photo"]
    assert plan.text(prompt) in all_prompts(ERASURE)
    assert NULL in all_prompts(ERASURE) and len(all_prompts(ERASURE)) == 1 + 4 * len(CONTEXTS)
