"""The closed-form start is the minimum that its docstring states, within the mask and at the adapter's rank."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import PromptPlan
from spare_core.method.settings import EraseSettings
from spare_core.method.solve import (
    Encoder,
    Moments,
    aligned_places,
    factorise,
    overwrite,
    prompt_moments,
)
from tests.support.adapters import load_tiny
from tests.support.toy import ToyDenoiser

RIDGE, EPSILON = 3.0, 1e-3
ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", ("a cat", "a dog"))
ERASURES = Erasures(ERASURE)
SETTINGS = EraseSettings(heldout=6, example_steps=2, dtype="float32", device="cpu")


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def wide_toy(inputs: int = 7, outputs: int = 6) -> ToyDenoiser:
    """Its layer of the prompt is (6, 7), so that masks and ranks cut something off."""
    denoiser = ToyDenoiser()
    denoiser.weights.text = torch.nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    return denoiser


def adapter_of(denoiser: ToyDenoiser, mask: LayerMask, rank: int) -> Adapter:
    full = LayerMask(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))
    masks = {"mix": full, "text": mask}
    adapter = Adapter.initialise(denoiser, {**masks}, min(rank, 3), 5.0, seed=0)
    if rank > 3:  # the toy's other layer allows no more
        update = adapter.updates["text"]
        update.down.data = torch.zeros(rank, update.shape[1])
        update.up.data = torch.zeros(update.shape[0], rank)
    return adapter


def channels(rows: list[int], columns: list[int]) -> LayerMask:
    return LayerMask(
        torch.isin(torch.arange(6), torch.tensor(rows)), torch.isin(torch.arange(7), torch.tensor(columns))
    )


X, T, K = tokens(1, 20, 7), tokens(2, 20, 7), tokens(3, 30, 7)
"""Tokens of a concept, of its surrogate, and of what is kept."""
MOMENTS = Moments(X.T @ X / 20, (T - X).T @ X / 20, K.T @ K / 30)


def minimum(weight: Tensor, mask: LayerMask, back: Tensor | float = 0.0) -> Tensor:
    """By least squares on the rows of the objective, each output by itself: another way than the normal equations.
    ``back`` is where from each kept token is to be brought back to."""
    columns = mask.columns.nonzero().flatten()
    gram = X[:, columns].T @ X[:, columns] / 20 + RIDGE * K[:, columns].T @ K[:, columns] / 30
    epsilon = EPSILON * gram.diagonal().mean()
    design = torch.cat(
        [X[:, columns] / 20**0.5, (RIDGE / 30) ** 0.5 * K[:, columns], epsilon**0.5 * torch.eye(len(columns))]
    )
    found = torch.zeros_like(weight)
    for row in mask.rows.nonzero().flatten():
        kept = (RIDGE / 30) ** 0.5 * (torch.zeros(30, 7).double() + back) @ weight[row]
        wanted = torch.cat([(T - X) @ weight[row] / 20**0.5, kept, torch.zeros(len(columns))])
        found[row, columns] = torch.linalg.lstsq(design, wanted[:, None]).solution.flatten()
    return found


@pytest.mark.parametrize(
    ("rows", "columns"), [(range(6), range(7)), ([0, 2, 5], [1, 2, 4, 6]), ([3], [0])], ids=["all", "some", "one"]
)
def test_it_is_the_minimum_within_the_mask(rows: list[int], columns: list[int]) -> None:
    denoiser, mask = wide_toy(), channels(list(rows), list(columns))
    adapter = adapter_of(denoiser, mask, rank=6)
    overwrite(adapter, denoiser, {"text": MOMENTS}, RIDGE)
    found = adapter.updates["text"].delta().double()
    assert not found[~mask.dense()].any()
    torch.testing.assert_close(found, minimum(denoiser.weights.text.weight.double(), mask), rtol=1e-4, atol=1e-5)
    assert not adapter.updates["mix"].delta().any()


def test_what_new_keys_shift_is_brought_back() -> None:
    denoiser, mask, back = wide_toy(), channels([0, 2, 5], [1, 2, 4, 6]), tokens(4, 30, 7)
    adapter = adapter_of(denoiser, mask, rank=6)
    overwrite(adapter, denoiser, {"text": dataclasses.replace(MOMENTS, returned=back.T @ K / 30)}, RIDGE)
    expected = minimum(denoiser.weights.text.weight.double(), mask, back)
    torch.testing.assert_close(adapter.updates["text"].delta().double(), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_without_moments_is_left_alone() -> None:
    denoiser = wide_toy()
    adapter = adapter_of(denoiser, channels(list(range(6)), list(range(7))), rank=3)
    overwrite(adapter, denoiser, {}, RIDGE)
    assert not adapter.updates["text"].up.any()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_low_rank_keeps_what_carries_most_where_the_inputs_are(rank: int) -> None:
    """No other matrix of that rank is nearer to the minimum in outputs: Eckart and Young, in the metric of G."""
    denoiser, mask = wide_toy(), channels([0, 1, 2, 4, 5], [0, 1, 3, 4, 5, 6])
    adapter = adapter_of(denoiser, mask, rank)
    overwrite(adapter, denoiser, {"text": MOMENTS}, RIDGE)
    gram = (MOMENTS.concept + RIDGE * MOMENTS.retained)[mask.columns][:, mask.columns]
    gram += EPSILON * gram.diagonal().mean() * torch.eye(len(gram))
    whole = minimum(denoiser.weights.text.weight.double(), mask)[:, mask.columns]
    root = torch.linalg.cholesky(gram)
    left = (whole - adapter.updates["text"].delta().detach().double()[:, mask.columns]) @ root
    expected = torch.linalg.svdvals(whole @ root)[rank:].square().sum()
    assert float(left.square().sum()) == pytest.approx(float(expected), rel=1e-3)


def test_layers_whose_columns_differ_are_solved_each_for_itself() -> None:
    """What they have in common is solved once; that is no reason to mix them up."""
    denoiser = wide_toy()
    adapter = adapter_of(denoiser, channels([0, 2, 5], [1, 2, 4, 6]), rank=6)
    own = factorise(MOMENTS, RIDGE, torch.tensor([True] * 7))
    some = factorise(MOMENTS, RIDGE, adapter.updates["text"].columns.bool())
    alone = factorise(MOMENTS, RIDGE, torch.tensor([True] * 7), shared=False)
    assert own.root is not None and alone.root is None
    weight = tokens(9, 5, 7)
    for factors, columns in ((own, range(7)), (alone, range(7)), (some, [1, 2, 4, 6])):
        spread, solved = factors.spread(weight), factors.solved(weight)
        assert solved.shape == (5, len(list(columns)))
        gram = factors.lower @ factors.lower.T
        torch.testing.assert_close(solved @ gram, weight @ MOMENTS.shift[:, list(columns)])
        torch.testing.assert_close(spread @ spread.T, solved @ gram @ solved.T)


def test_a_surrogate_that_reads_the_same_changes_nothing() -> None:
    denoiser = wide_toy()
    adapter = adapter_of(denoiser, channels(list(range(6)), list(range(7))), rank=3)
    overwrite(adapter, denoiser, {"text": dataclasses.replace(MOMENTS, shift=torch.zeros(7, 7).double())}, RIDGE)
    assert not adapter.updates["text"].up.any()


def test_rows_of_the_first_matrix_have_length_one() -> None:
    """As those that are drawn have: an optimiser's step means the same in every layer."""
    denoiser = wide_toy()
    adapter = adapter_of(denoiser, channels(list(range(6)), list(range(7))), rank=3)
    overwrite(adapter, denoiser, {"text": MOMENTS}, RIDGE)
    torch.testing.assert_close(adapter.updates["text"].down.norm(dim=1), torch.ones(3))


def test_directions_that_the_mask_has_no_room_for_stay_as_drawn() -> None:
    denoiser, mask = wide_toy(), channels([2], [0, 1, 2])
    adapter = adapter_of(denoiser, mask, rank=3)
    drawn = adapter.updates["text"].down.clone()
    overwrite(adapter, denoiser, {"text": MOMENTS}, RIDGE)
    assert torch.equal(adapter.updates["text"].down[1:], drawn[1:])
    assert not adapter.updates["text"].up[:, 1:].any()
    assert adapter.updates["text"].up[:, 0].any()


def test_a_mask_of_single_weights_is_left_alone() -> None:
    entries = torch.rand(6, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    denoiser = wide_toy()
    adapter = adapter_of(denoiser, LayerMask(entries.any(dim=1), entries.any(dim=0), entries), rank=2)
    overwrite(adapter, denoiser, {"text": MOMENTS}, RIDGE)
    assert not adapter.updates["text"].up.any()


# --- where tokens are found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "other", "places"),
    [
        ([1, 5, 2], [1, 6, 2], [0, 1, 2, 3, 4, 5]),
        ([1, 5, 2], [1, 6, 7, 2], [0, 2, 3, 4, 5, 5]),
        ([1, 5, 6, 2], [1, 7, 2], [0, 1, 1, 2, 3, 4]),
        ([1, 5, 6, 7, 2], [1, 8, 9, 2], [0, 1, 2, 2, 3, 4]),
        ([1, 5, 2], [1, 5, 2], [0, 1, 2, 3, 4, 5]),
        ([1, 9, 5, 2], [1, 5, 2], [0, 1, 1, 2, 3, 4]),
        ([1, 5, 2], [1, 9, 5, 2], [0, 2, 3, 4, 5, 5]),
        ([1, 5, 5, 2], [1, 5, 2], [0, 1, 2, 2, 3, 4]),
    ],
)
def test_tokens_are_found_where_they_mean_the_same(mine: list[int], other: list[int], places: list[int]) -> None:
    assert aligned_places([mine], [other], 6).tolist() == [places]


@given(st.lists(st.integers(1, 3), max_size=6), st.lists(st.integers(1, 3), max_size=6))
def test_every_token_is_found_within_the_other_prompt(middle: list[int], other_middle: list[int]) -> None:
    mine, other = [0, *middle, 9], [0, *other_middle, 9]
    (places,) = aligned_places([mine], [other], 10).tolist()
    assert len(places) == 10
    assert places == sorted(places)
    assert places[0] == 0
    assert other[places[len(mine) - 1]] == 9
    assert all(0 <= place < len(other) for place in places[: len(mine)])


# --- of a real model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["sd1_dir", "sd2_dir", "sdxl_dir"])
def test_moments_are_of_every_token_of_every_prompt(which: str, request: pytest.FixtureRequest) -> None:
    denoiser = load_tiny(request.getfixturevalue(which))

    def embeds(*prompts: str) -> Tensor:
        return denoiser.encode_prompts(prompts).prompt_embeds.double().flatten(0, 1)

    settings = dataclasses.replace(SETTINGS, prior_weight=2.0)
    width = embeds("").shape[1]
    prior = torch.eye(width, dtype=torch.double)
    found = prompt_moments(Encoder(denoiser), ERASURES, prior, settings, "train")
    plan = PromptPlan(ERASURES, 0, "train", denoiser.words())
    elsewhere = plan.pairs_elsewhere(ERASURE, 64)
    assert len(elsewhere) == 64
    given = embeds("a cat in Neon", "a dog in Neon"), embeds("a cat in Photo", "a dog in Photo")
    others = tuple(embeds(*map(plan.text, side)) for side in zip(*elsewhere, strict=True))
    retained = 2.0 * prior
    for kept in ([""], *([f"{context} in {name}" for context in ERASURE.contexts] for name in ERASURE.retained)):
        k = embeds(*kept)
        retained = retained + k.T @ k / len(k)
    lengths = {len(ids) for ids in denoiser.token_ids(["a cat in Neon", "a cat in Photo"])}
    assert len(lengths) == 1, "this check wants prompts of the same length"
    concept = sum(x.T @ x / len(x) for x, _ in (given, others)) / 2
    shift = sum((t - x).T @ x / len(x) for x, t in (given, others)) / 2
    for name, expected in (("concept", concept), ("retained", retained), ("shift", shift)):
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-5, atol=1e-7)
