"""Prompt search: points on the simplex, tokens that are read as text, each prompt for itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spare_core.attacks import search as searching
from spare_core.attacks.scene import wearing
from spare_core.attacks.search import AIMS, TOKENS, on_simplex, search, tasks
from spare_core.method.places import unsaid
from spare_core.models.unet import UNetDenoiser
from spare_core.streams import stream
from tests.support.adapters import random_adapter

PROMPTS = ["A Cat image in Photo style.", "A Dog image in Photo style."]


def test_a_point_goes_to_the_nearest_of_the_simplex() -> None:
    points = torch.tensor([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0], [0.6, 0.6, -1.0], [0.0, 0.0, 0.0]])
    nearest = on_simplex(points)
    wanted = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(nearest, wanted)


@pytest.fixture(scope="module")
def asked(denoiser: UNetDenoiser) -> list[searching.Task]:
    latents = torch.randn((2, *denoiser.latent_shape()), generator=stream(1, "test"))
    return tasks(denoiser, latents, denoiser.encode_prompts(PROMPTS), 2, stream(1, "test", "tasks"))


def found(denoiser: UNetDenoiser, asked: list[searching.Task], aim: str, seen: Any, steps: int = 3) -> searching.Found:
    with wearing(denoiser, [random_adapter(denoiser, "channel")]):
        return search(denoiser, PROMPTS, asked, aim, steps, 0.1, 1, 0, seen)


@pytest.mark.parametrize("aim", AIMS)
def test_what_was_found_is_text_and_a_prompt_that_works_is_left_alone(
    denoiser: UNetDenoiser, asked: list[searching.Task], aim: str
) -> None:
    rows_asked = []

    def seen(_: Any, rows: list[int]) -> list[bool]:
        rows_asked.append(rows)
        return [row == 0 for row in rows]

    result = found(denoiser, asked, aim, seen)
    assert rows_asked == [[0, 1], [1]], "the first was found at the first timestep"
    assert (result.shown, result.steps) == ([True, False], 6)
    written, _ = denoiser.token_vectors()
    assert all(len(tokens) == TOKENS and {*tokens} <= {*written} for tokens in result.tokens)
    assert not {*denoiser.pipeline.tokenizer.all_special_tokens} & {*written}


def test_tokens_that_were_found_are_read_as_that_text_is(denoiser: UNetDenoiser, asked: list[searching.Task]) -> None:
    """What ``seen`` draws is what the tokens say, not the point between them that the search is at."""
    encoded = []

    def seen(conditioning: Any, rows: list[int]) -> list[bool]:
        encoded.append(conditioning)
        return [True] * len(rows)

    result = found(denoiser, asked, "noise", seen)
    tokenizer = denoiser.pipeline.tokenizer
    words = unsaid(denoiser, PROMPTS, TOKENS)
    written, table = denoiser.token_vectors()
    vectors = torch.stack([table[[written.index(token) for token in tokens]] for tokens in result.tokens])
    again = denoiser.encode_as([f"{' '.join(words)} {prompt}" for prompt in PROMPTS], words, vectors)
    torch.testing.assert_close(encoded[0].prompt_embeds, again.prompt_embeds)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in result.tokens[0]]
    torch.testing.assert_close(vectors[0], denoiser._token_tables()[0].weight[ids].detach())


def test_more_steps_come_nearer(denoiser: UNetDenoiser, asked: list[searching.Task]) -> None:
    """The best of the tokens that a search passes predicts what is asked for better than those it began with."""
    losses: list[float] = []
    task = asked[0]

    def seen(conditioning: Any, rows: list[int]) -> list[bool]:
        when = torch.full((len(rows),), task.timestep)
        predicted = denoiser.predict(task.noisy[rows], when, conditioning)
        losses.append(float((predicted - task.wanted["prediction"][rows]).square().mean()))
        return [False] * len(rows)

    for steps in (0, 8, 16, 24):
        found(denoiser, [task], "prediction", seen, steps)
    assert min(losses[1:]) < losses[0]
