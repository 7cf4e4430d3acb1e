"""The bank holds the states of both sides' sampling, and what the frozen model really predicts on each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import GENERIC, NULL
from spare_core.files.pictures import load_images
from spare_core.method.bank import Bank, Side, fill_bank
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser

ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", ("a cat", "a dog", "a hat"))
ERASURES = Erasures(ERASURE)
SETTINGS = EraseSettings(examples=6, retain_examples=6, example_steps=2, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def bank(denoiser: UNetDenoiser) -> Bank:
    return fill_bank(denoiser, ERASURES, SETTINGS)


def predicted(denoiser: UNetDenoiser, bank: Bank, side: Side, rows: Tensor) -> Tensor:
    """Query again, all at once."""
    with torch.no_grad():
        return denoiser.predict(side.noisy, side.timesteps, bank.table[rows])


def test_the_forget_side_asks_for_the_concept_and_is_taught_the_surrogate(bank: Bank) -> None:
    for student, teacher in zip(bank.forget.student.tolist(), bank.forget.teacher.tolist(), strict=True):
        assert bank.prompts[student].endswith(" in Neon")
        assert bank.prompts[teacher] == bank.prompts[student].replace("Neon", "Photo")


def test_the_retain_side_is_taught_itself_and_holds_everything_kept(bank: Bank) -> None:
    assert torch.equal(bank.retain.student, bank.retain.teacher)
    assert bank.retain.under_teacher is bank.retain.under_student
    assert {bank.names[row] for row in bank.retain.student.tolist()} == {"Photo", "Rust", "Winter", GENERIC}


@pytest.mark.parametrize("side", ["forget", "retain"])
@pytest.mark.parametrize("kind", ["denoiser", "denoiser_v"])
def test_every_answer_is_the_frozen_models(
    side: str, kind: str, denoiser: UNetDenoiser, sd2_dir: Path, bank: Bank
) -> None:
    if kind == "denoiser_v":
        denoiser = load_denoiser(str(sd2_dir), "cpu", "float32")
        bank = fill_bank(denoiser, ERASURES, SETTINGS)
    states: Side = getattr(bank, side)
    null = torch.full_like(states.student, bank.null_row)
    assert bank.prompts[bank.null_row] == NULL
    for kept, rows in (
        (states.under_student, states.student),
        (states.under_teacher, states.teacher),
        (states.under_empty, null),
    ):
        torch.testing.assert_close(kept, predicted(denoiser, bank, states, rows), rtol=1e-4, atol=1e-5)


def test_states_lie_all_over_the_schedule(bank: Bank, denoiser: UNetDenoiser) -> None:
    """Every trajectory begins at the last timestep; of fifteen the second states lie in fifteen equal parts."""
    first, second = torch.cat([bank.forget.timesteps, bank.retain.timesteps]).reshape(15, 2).unbind(dim=1)
    last = denoiser.num_timesteps - 1
    assert set(first.tolist()) == {last}
    assert sorted((second * 15 // last).tolist()) == list(range(15))


def test_the_table_holds_what_the_text_encoder_says_of_each_prompt(denoiser: UNetDenoiser, bank: Bank) -> None:
    torch.testing.assert_close(bank.table.prompt_embeds, denoiser.encode_prompts(bank.prompts).prompt_embeds)


def test_states_depend_on_the_seed_alone(denoiser: UNetDenoiser, bank: Bank) -> None:
    again = fill_bank(denoiser, ERASURES, SETTINGS)
    assert all(torch.equal(one, two) for one, two in zip(again.forget, bank.forget, strict=True))
    other = fill_bank(denoiser, ERASURES, dataclasses.replace(SETTINGS, seed=1))
    assert not torch.equal(other.forget.noisy, bank.forget.noisy)


def test_pictures_take_the_place_of_what_the_concept_drives(denoiser: UNetDenoiser, bank: Bank, tmp_path: Path) -> None:
    """All of them, also where they are more; every row can be traced to its noise, and is answered by the model."""
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 255 - 60 * i, 90)).save(tmp_path / f"{i}.png")
    pictures = load_images(tmp_path, denoiser.resolution)
    made = fill_bank(denoiser, ERASURES, SETTINGS, pictures)
    own = denoiser.encode_images(pictures)
    torch.testing.assert_close(made.forget.latents[:4], own)
    assert len(made.forget.latents) == 8
    noise = denoiser.noise_in(made.forget.noisy, made.forget.latents[made.forget.picture], made.forget.timesteps)
    assert float(noise[:8].std()) == pytest.approx(1.0, abs=0.1)
    answers = predicted(denoiser, made, made.forget, made.forget.teacher)
    torch.testing.assert_close(made.forget.under_teacher, answers, rtol=1e-4, atol=1e-5)


def test_of_a_long_list_each_name_is_asked_about_on_its_surrogates_trajectory(denoiser: UNetDenoiser) -> None:
    """Which are sampled for what is kept anyway, in half as many steps."""
    names = ("Neon", "Winter", "Mosaic", "Ink")
    erasures = Erasures(*(dataclasses.replace(ERASURE, concept=name, keep=("Rust",)) for name in names))
    listed = fill_bank(denoiser, erasures, dataclasses.replace(SETTINGS, example_steps=4))
    students = [listed.names[row] for row in listed.forget.student.tolist()]
    assert students == [name for name in names for _ in range(2)]
    assert {listed.names[row] for row in listed.forget.teacher.tolist()} == {"Photo"}
    own = torch.cat([listed.retain.noisy[[i]] for i, row in enumerate(listed.retain.student.tolist())
                     if listed.names[row] == "Photo"])  # fmt: skip
    for state in listed.forget.noisy:
        assert any(torch.equal(state, other) for other in own)
    for rows, answers in (("student", "under_student"), ("teacher", "under_teacher")):
        found = predicted(denoiser, listed, listed.forget, getattr(listed.forget, rows))
        torch.testing.assert_close(getattr(listed.forget, answers), found, rtol=1e-4, atol=1e-5)
