"""A mask lets the best-scored weights move, as many as asked for, by one threshold over all layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spare_core.adapters.layer_mask import LayerMask, Masks
from spare_core.errors import SettingsError
from spare_core.method.masks import Score, build_masks, describe_masks, kth_largest, whole_layers
from spare_core.method.settings import MaskKind

KINDS: tuple[MaskKind, ...] = ("module", "channel", "weight")
MAGNITUDE = torch.tensor([[1.0, 2.0, 6.0], [0.0, 4.0, 5.0]])

magnitudes = st.floats(0.0, width=32, allow_nan=False, allow_infinity=False)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))
densities = st.floats(0.01, 1.0)


def score(magnitude: Tensor, kind: MaskKind) -> Score:
    """One batch's score."""
    made = Score.zeros(kind, magnitude)
    made.add(magnitude)
    return made


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Tensor]:
    """Magnitudes of some layers, no two of them equal, none zero."""
    sizes = draw(st.lists(shapes, min_size=1, max_size=4))
    count = sum(rows * columns for rows, columns in sizes)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31)))) + 1.0
    parts = order.split([rows * columns for rows, columns in sizes])
    return {f"layer{i}": part.reshape(size) for i, (part, size) in enumerate(zip(parts, sizes, strict=True))}


def masks_of(magnitudes_of: dict[str, Tensor], kind: MaskKind, density: float) -> Masks:
    """From magnitudes to masks."""
    return build_masks({name: score(values, kind) for name, values in magnitudes_of.items()}, kind, density)


def size_of(magnitudes_of: dict[str, Tensor]) -> int:
    """Weights of all layers."""
    return sum(values.numel() for values in magnitudes_of.values())


# --- scores ----------------------------------------------------------------------------------------------------------


def test_a_weight_score_keeps_every_weight() -> None:
    assert torch.equal(score(MAGNITUDE, "weight").parts[0], MAGNITUDE)


def test_a_channel_score_is_the_mean_of_each_row_and_of_each_column() -> None:
    rows, columns = score(MAGNITUDE, "channel").parts
    assert rows.tolist() == [3.0, 3.0]
    assert columns.tolist() == [0.5, 3.0, 5.5]


def test_a_module_score_is_one_mean() -> None:
    assert score(MAGNITUDE, "module").parts[0].tolist() == [3.0]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_add_up(kind: MaskKind) -> None:
    twice = score(MAGNITUDE, kind)
    twice.add(3 * MAGNITUDE)
    for part, once in zip(twice.parts, score(MAGNITUDE, kind).parts, strict=True):
        assert torch.equal(part, 4 * once)


def test_half_precision_gradients_are_summed_in_full_precision() -> None:
    total = Score.zeros("weight", torch.zeros(1, 1))
    for _ in range(3000):  # in float16, 2048 + 1 is 2048
        total.add(torch.ones(1, 1, dtype=torch.float16))
    assert total.parts[0].item() == 3000.0


def test_a_contrast_divides_part_by_part() -> None:
    other = score(torch.full((2, 3), 0.5), "channel")
    rows, columns = score(MAGNITUDE, "channel").divided_by(other, floor=0.5).parts
    assert rows.tolist() == [3.0, 3.0]
    assert columns.tolist() == [0.5, 3.0, 5.5]
    rows, columns = score(MAGNITUDE, "channel").divided_by(other, floor=0.0).parts
    assert rows.tolist() == [6.0, 6.0]
    assert columns.tolist() == [1.0, 6.0, 11.0]


def test_total_and_count_describe_the_first_part() -> None:
    rows = score(MAGNITUDE, "channel")
    assert (float(rows.total()), rows.count()) == (6.0, 2)
    weights = score(MAGNITUDE, "weight")
    assert (float(weights.total()), weights.count()) == (18.0, 6)


# --- the threshold ---------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(magnitudes, max_size=30), min_size=1, max_size=5), st.data())
@settings(max_examples=200, deadline=None)
def test_the_kth_largest_is_what_a_sort_finds(values: list[list[float]], data: st.DataObject) -> None:
    flat = sorted((value for part in values for value in part), reverse=True)
    if flat:
        k = data.draw(st.integers(1, len(flat)))
        assert kth_largest([torch.tensor(part) for part in values], k) == flat[k - 1]


@given(st.lists(st.sampled_from([0.0, 1e-45, 1.1754942e-38, 1.0, 1.0000001, 3.4028235e38]), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_ties_zeros_denormals_and_the_largest_float_are_ordered_exactly(values: list[float]) -> None:
    tensor = torch.tensor(values)
    ranked = tensor.sort(descending=True).values.tolist()
    assert [kth_largest([tensor], k) for k in range(1, len(values) + 1)] == ranked


def test_the_threshold_does_not_care_how_scores_are_laid_out() -> None:
    values = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    expected = values.flatten().sort(descending=True).values[9].item()
    assert kth_largest([values.T], 10) == expected
    assert kth_largest([values[::2], values[1::2]], 10) == expected
    assert kth_largest(iter([values]), 10) == expected


# --- masks -----------------------------------------------------------------------------------------------------------


@given(layers(), densities)
@settings(max_examples=60, deadline=None)
def test_a_weight_mask_holds_exactly_the_best_weights(values: dict[str, Tensor], density: float) -> None:
    masks = masks_of(values, "weight", density)
    count = max(1, round(density * size_of(values)))
    chosen = torch.cat([values[name][mask.dense()] for name, mask in masks.items()])
    assert sorted(chosen.tolist()) == [float(size_of(values) - i) for i in reversed(range(count))]
    assert sum(mask.count() for mask in masks.values()) == count


@given(layers(), densities)
@settings(max_examples=60, deadline=None)
def test_a_weight_mask_names_the_rows_and_columns_it_touches(values: dict[str, Tensor], density: float) -> None:
    for mask in masks_of(values, "weight", density).values():
        dense = mask.dense()
        assert torch.equal(mask.rows, dense.any(dim=1))
        assert torch.equal(mask.columns, dense.any(dim=0))


@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_a_channel_mask_comes_close_to_the_density_and_never_above(seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(20, 30, generator=generator) for name in ("q", "k", "v")}
    share = describe_masks(masks_of(values, "channel", density))["density"]
    assert density - 0.03 <= share <= density


@given(layers(), densities)
@settings(max_examples=20, deadline=None)
def test_something_always_moves(values: dict[str, Tensor], density: float) -> None:
    for kind in KINDS:
        assert sum(mask.count() for mask in masks_of(values, kind, density).values()) >= 1


@given(layers())
@settings(max_examples=30, deadline=None)
def test_a_density_of_one_lets_everything_move(values: dict[str, Tensor]) -> None:
    for kind in KINDS:
        assert all(mask.dense().all() for mask in masks_of(values, kind, 1.0).values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_density_adds_and_takes_nothing_away(kind: MaskKind) -> None:
    generator = torch.Generator().manual_seed(5)
    values = {name: torch.rand(12, 9, generator=generator) for name in "abcde"}
    smaller = masks_of(values, kind, 0.2)
    for density in (0.4, 0.7, 1.0):
        larger = masks_of(values, kind, density)
        assert all((larger[name].dense() | ~smaller[name].dense()).all() for name in values)
        smaller = larger


def test_a_channel_mask_is_the_crossing_of_its_rows_and_columns() -> None:
    values = {"a": torch.outer(torch.tensor([9.0, 1.0, 8.0]), torch.tensor([1.0, 7.0, 6.0, 2.0]))}
    mask = masks_of(values, "channel", 0.34)["a"]
    assert mask.rows.tolist() == [True, False, True]
    assert mask.columns.tolist() == [False, True, True, False]
    assert mask.count() == int(mask.dense().sum()) == 4
    assert mask.entries is None


def test_the_threshold_is_global_over_the_layers() -> None:
    loud, quiet = torch.full((3, 3), 10.0), torch.full((3, 3), 0.1)
    for kind in KINDS:
        masks = masks_of({"quiet": quiet, "loud": loud}, kind, 0.5)
        assert masks["loud"].dense().all(), kind
        assert masks["quiet"].count() == 0, kind


def test_module_masks_take_whole_layers_best_first_while_they_fit() -> None:
    values = {"small": torch.full((2, 2), 3.0), "middle": torch.full((2, 3), 2.0), "large": torch.full((5, 4), 1.0)}
    chosen = {density: [name for name, mask in masks_of(values, "module", density).items() if mask.count()]
              for density in (0.01, 0.2, 0.34, 0.99, 1.0)}  # fmt: skip
    assert chosen == {
        0.01: ["small"],
        0.2: ["small"],
        0.34: ["small", "middle"],
        0.99: ["small", "middle"],
        1.0: ["small", "middle", "large"],
    }


def test_one_module_moves_even_if_it_alone_is_too_large() -> None:
    masks = masks_of({"best": torch.full((6, 6), 2.0), "next": torch.full((1, 1), 1.0)}, "module", 0.1)
    assert masks["best"].dense().all()
    assert not masks["next"].dense().any()


def test_weights_that_never_reacted_do_not_move() -> None:
    values = {"a": torch.tensor([[0.0, 1.0], [0.0, 2.0]])}
    assert masks_of(values, "weight", 1.0)["a"].dense().tolist() == [[False, True], [False, True]]
    assert masks_of(values, "channel", 1.0)["a"].columns.tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_react_at_all_is_refused(kind: MaskKind) -> None:
    with pytest.raises(SettingsError, match="every saliency score is zero"):
        masks_of({"a": torch.zeros(2, 2)}, kind, 0.5)


def test_whole_layers_move_all_of_those_named_and_nothing_of_the_others() -> None:
    masks = whole_layers({"a": nn.Linear(3, 2), "b": nn.Linear(2, 4)}, {"b", "c"})
    assert masks.keys() == {"a", "b"}
    assert masks["a"].dense().shape == (2, 3) and not masks["a"].dense().any()
    assert masks["b"].dense().shape == (4, 2) and masks["b"].dense().all()


def test_a_mask_broadcasts_over_its_layer() -> None:
    mask = LayerMask(torch.tensor([True, False]), torch.tensor([True, False, True]))
    assert mask.dense().tolist() == [[True, False, True], [False, False, False]]
    assert mask.count() == 2


def test_the_description_counts_layers_and_weights() -> None:
    masks = {
        "a": LayerMask(torch.tensor([True, False]), torch.tensor([True, False, True])),
        "b": LayerMask(torch.tensor([False, False]), torch.tensor([True, True])),
    }
    assert describe_masks(masks) == {"layers": 2, "layers_touched": 1, "weights": 10, "moving": 2, "density": 0.2}
