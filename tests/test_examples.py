"""Both sides' examples come from one template, fixed seeds, and a split of contexts that no seed changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from spare_core.concept import Erasure
from spare_core.denoiser import UNetDenoiser
from spare_core.errors import ImagesError
from spare_core.examples import NULL, Examples, generate_examples, load_images
from spare_core.settings import EraseSettings

CONTEXTS = tuple(f"a {name}" for name in ("cat", "dog", "hat", "box", "cup", "toy", "car", "map", "pen", "jar"))
ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", CONTEXTS)
SETTINGS = EraseSettings(examples=8, retain_examples=12, heldout=6, example_steps=1, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def examples(denoiser: UNetDenoiser) -> Examples:
    return generate_examples(denoiser, ERASURE, SETTINGS)


def _contexts(examples: Examples, rows: torch.Tensor) -> set[str]:
    return {examples.prompts[row].partition(" in ")[0] for row in rows.tolist() if examples.prompts[row]}


def test_the_forget_side_asks_for_the_concept_and_is_taught_the_surrogate(examples: Examples) -> None:
    for side in (examples.forget, examples.forget_heldout):
        for student, teacher in zip(side.student.tolist(), side.teacher.tolist(), strict=True):
            assert examples.prompts[student].endswith(" in Neon")
            assert examples.prompts[teacher] == examples.prompts[student].replace("Neon", "Photo")


def test_the_retain_side_is_taught_itself_and_holds_everything_kept(examples: Examples) -> None:
    for side in (examples.retain, examples.retain_heldout):
        assert torch.equal(side.student, side.teacher)
        assert {examples.names[row] for row in side.student.tolist()} == {"Photo", "Rust", "Winter", NULL}


def test_every_kept_concept_is_measured_however_few_examples_are_asked_for(denoiser: UNetDenoiser) -> None:
    few = generate_examples(denoiser, ERASURE, dataclasses.replace(SETTINGS, heldout=1))
    assert {few.names[row] for row in few.retain_heldout.student.tolist()} == {"Photo", "Rust", "Winter", NULL}


def test_contexts_held_out_are_never_trained_on_under_any_seed(denoiser: UNetDenoiser, examples: Examples) -> None:
    other = generate_examples(denoiser, ERASURE, dataclasses.replace(SETTINGS, seed=5))
    trained = _contexts(examples, examples.forget.student) | _contexts(examples, examples.retain.student)
    held_out = _contexts(other, other.forget_heldout.student) | _contexts(other, other.retain_heldout.student)
    assert held_out and not trained & held_out


def test_the_table_holds_what_the_text_encoder_says_of_each_prompt(denoiser: UNetDenoiser, examples: Examples) -> None:
    assert examples.prompts[examples.null_row] == NULL
    torch.testing.assert_close(examples.table.prompt_embeds, denoiser.encode_prompts(examples.prompts).prompt_embeds)


def test_latents_depend_on_the_seed_alone(denoiser: UNetDenoiser, examples: Examples) -> None:
    again = generate_examples(denoiser, ERASURE, SETTINGS)
    assert torch.equal(again.forget.latents, examples.forget.latents)
    other = generate_examples(denoiser, ERASURE, dataclasses.replace(SETTINGS, seed=1))
    assert not torch.equal(other.forget.latents, examples.forget.latents)


def test_pictures_are_cropped_to_their_middle_square(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 10), (0, 0, 0))
    picture.paste((255, 255, 255), (10, 0, 20, 10))
    picture.save(tmp_path / "a.png")
    assert load_images(tmp_path, 8).mean() == pytest.approx(1.0)


def test_every_unreadable_picture_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    for name in ("torn.png", "text.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ImagesError, match=r"2 of 3 images.*text\.jpg.*torn\.png"):
        load_images(tmp_path, 8)
