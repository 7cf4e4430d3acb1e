"""UA, IRA, CRA and FID are what their definitions say, on tables that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spare_core.errors import InputError
from spare_core.evaluation.metrics import (
    Column,
    Outcomes,
    concept_scores,
    confusion,
    fid,
    frechet_distance,
    mean_accuracy,
    ua_ira_cra,
    wilson_interval,
)
from tests.support.grids import OBJECTS, judged, perfect, small_suite

NEON, PHOTO, RUST = range(3)
SUITE = small_suite()  # 3 styles x 3 objects x 2 seeds: 18 pictures, 6 of each concept


def test_a_model_that_forgot_nothing_scores_zero_and_ones() -> None:
    scores = ua_ira_cra(perfect(SUITE), {"style": [NEON]})
    assert [figure and figure.value for figure in scores] == [0.0, 1.0, 1.0, 1.0, None]


def test_ua_counts_the_erased_concepts_own_pictures() -> None:
    """Neon Lines is seen in the cats alone: 2 of 6."""
    verdicts = judged(SUITE, {("Dog", "Neon Lines"): "Photo", ("Tower", "Neon Lines"): "Photo"})
    scores = ua_ira_cra(verdicts, {"style": [NEON]})
    assert scores.ua.value == pytest.approx(4 / 6)
    assert (scores.ua.pictures, scores.ua.concepts) == (6, 1)
    assert scores.ira.value == 1.0


def test_ira_is_the_mean_over_the_other_concepts_of_the_domain() -> None:
    """Photo 6 of 6, Rust 4 of 6; the erased style does not enter."""
    scores = ua_ira_cra(judged(SUITE, {("Cat", "Rust"): "Neon Lines"}), {"style": [NEON]})
    assert scores.ira.value == pytest.approx((1 + 4 / 6) / 2)
    assert (scores.ira.pictures, scores.ira.concepts) == (12, 2)


def test_ira_of_the_unnamed_is_of_what_no_request_speaks_of() -> None:
    """Rust alone, of which a third was lost; where Rust is named too, nothing is unnamed."""
    verdicts = judged(SUITE, {("Cat", "Rust"): "Neon Lines"})
    scores = ua_ira_cra(verdicts, {"style": [NEON]}, known={"style": [PHOTO], "object": []})
    assert scores.ira_unnamed is not None
    assert scores.ira_unnamed.value == pytest.approx(4 / 6)
    assert (scores.ira_unnamed.pictures, scores.ira_unnamed.concepts) == (6, 1)
    assert ua_ira_cra(verdicts, {"style": [NEON]}, known={"style": [PHOTO, RUST]}).ira_unnamed is None


def test_cra_looks_at_kept_pictures_and_cra_erased_at_the_others() -> None:
    """A dog lost only from the erased style costs CRA nothing."""
    verdicts = perfect(SUITE)
    lost = (verdicts.objects.prompted == 1) & (verdicts.styles.prompted == NEON)
    predicted = torch.where(lost, -1, verdicts.objects.prompted)
    scores = ua_ira_cra(verdicts._replace(objects=verdicts.objects._replace(predicted=predicted)), {"style": [NEON]})
    assert scores.cra.value == 1.0
    assert scores.cra_erased.value == pytest.approx(2 / 3)
    assert (scores.cra.pictures, scores.cra_erased.pictures) == (12, 6)


def test_for_an_object_the_domains_change_places() -> None:
    scores = ua_ira_cra(judged(SUITE, {("Cat", "Rust"): "Photo"}), {"object": [OBJECTS.index("Dog")]})
    assert (scores.ua.value, scores.ira.value) == (0.0, 1.0)
    assert scores.cra.value == pytest.approx((1 + 1 + 2 / 4) / 3)


def test_of_several_erased_concepts_ua_is_the_mean_and_none_of_their_pictures_is_kept() -> None:
    verdicts = judged(SUITE, {(obj, "Neon Lines"): "Photo" for obj in OBJECTS})
    scores = ua_ira_cra(verdicts, {"style": [NEON, RUST]})
    assert scores.ua.value == pytest.approx(0.5)
    assert (scores.ua.pictures, scores.ira.pictures, scores.ira.concepts) == (12, 6, 1)


@pytest.mark.parametrize("erased", [[NEON, PHOTO, RUST], [NEON, 7]])
def test_nothing_kept_or_nothing_of_the_erased_drawn_is_refused(erased: list[int]) -> None:
    with pytest.raises(InputError, match="at least one other"):
        ua_ira_cra(perfect(SUITE), {"style": erased})


def test_a_style_and_an_object_erased_together_leave_what_names_neither() -> None:
    """Neon Lines is forgotten but for the cats, the dog not at all; Rust is lost from the cats."""
    verdicts = judged(SUITE, {(obj, "Neon Lines"): "Photo" for obj in ("Dog", "Tower")} | {("Cat", "Rust"): "Photo"})
    scores = ua_ira_cra(verdicts, {"object": [OBJECTS.index("Dog")], "style": [NEON]})
    assert scores.ua.value == pytest.approx((4 / 6 + 0) / 2)
    assert (scores.ua.pictures, scores.ua.concepts) == (12, 2)
    # Kept: two styles by two objects, four pictures of each concept; Rust is seen in the towers alone.
    assert scores.ira.value == pytest.approx((1 + 2 / 4 + 1 + 1) / 4)
    assert scores.cra == scores.ira
    assert (scores.ira.pictures, scores.ira.concepts) == (16, 4)
    # Cats and towers in neon, and dogs in the two other styles: a dog in neon has no rest.
    assert (scores.cra_erased.pictures, scores.cra_erased.concepts) == (8, 4)


def test_a_grid_without_a_picture_that_names_nothing_erased_is_refused() -> None:
    verdicts = perfect(SUITE)
    named = (verdicts.styles.prompted == NEON) | (verdicts.objects.prompted == 1)
    some = Outcomes(*(Column(*(part[named] for part in column)) for column in verdicts))
    with pytest.raises(InputError, match="every picture in the grid names an erased concept"):
        ua_ira_cra(some, {"style": [NEON], "object": [1]})


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(18)), st.integers(0, 2**32 - 1))
def test_the_order_of_the_pictures_does_not_matter(order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = SUITE.cells()
    columns = [Column(prompted, torch.randint(-1, 3, (18,), generator=generator), torch.rand(18, generator=generator))
               for prompted in (cells.objects, cells.styles)]  # fmt: skip
    shuffled = [Column(*(part[torch.tensor(order)] for part in column)) for column in columns]
    assert ua_ira_cra(Outcomes(*columns), {"style": [RUST]}) == ua_ira_cra(Outcomes(*shuffled), {"style": [RUST]})


def test_each_concept_is_scored_on_kept_pictures_and_the_erased_on_its_own() -> None:
    verdicts = judged(SUITE, {("Cat", "Neon Lines"): "Photo"})
    scores = {(score.kind, score.concept): score for score in concept_scores(verdicts, {"style": [NEON]})}
    assert len(scores) == 6
    neon, cat = scores["style", NEON], scores["object", 0]
    assert (neon.erased, neon.pictures) == (True, 6)
    assert (neon.accuracy, neon.probability) == pytest.approx((4 / 6, (4 * 0.9 + 2 * 0.2) / 6))
    assert (cat.erased, cat.pictures, cat.accuracy) == (False, 4, 1.0)


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (20, 20), (7, 20), (99, 100), (1, 2)])
def test_wilsons_interval_is_scipys(hits: int, count: int) -> None:
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high))


def test_the_bootstrap_matches_resampled_pictures() -> None:
    """Drawing counts of hits and misses is the same as drawing pictures."""
    generator = torch.Generator().manual_seed(3)
    prompted = torch.arange(4).repeat_interleave(25)
    hit = torch.rand(100, generator=generator) < torch.tensor([0.9, 0.7, 0.5, 0.95])[prompted]
    column = Column(prompted, torch.where(hit, prompted, -1), torch.rand(100))
    figure = mean_accuracy([(column, torch.ones(100).bool())])
    rng = np.random.default_rng(5)
    means = []
    for _ in range(4000):
        rows = rng.integers(0, 100, 100)
        concepts, hits = prompted[rows].numpy(), hit[rows].numpy()
        means.append(np.mean([hits[concepts == concept].mean() for concept in range(4)]))
    assert (figure.low, figure.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)
    assert figure.low < figure.value < figure.high


@pytest.mark.parametrize("named", [0, -1])
def test_a_figure_without_exceptions_still_has_an_interval(named: int) -> None:
    """Twenty hits of twenty do not prove a thousand."""
    prompted = torch.zeros(20, dtype=torch.long)
    figure = mean_accuracy([(Column(prompted, torch.full((20,), named), torch.rand(20)), torch.ones(20).bool())])
    assert (figure.low, figure.high) == wilson_interval(1.0 + named, 20)


def test_one_picture_a_concept_leaves_the_figure_uncertain() -> None:
    prompted = torch.arange(5)
    figure = mean_accuracy([(Column(prompted, torch.tensor([0, 1, 2, 3, 0]), torch.rand(5)), torch.ones(5).bool())])
    assert figure.value == pytest.approx(0.8)
    assert figure.high - figure.low > 0.3


def gaussian(count: int, size: int, seed: int) -> Tensor:
    """Correlated normal features ``(count, size)``."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator)
    return torch.randn(count, size, generator=generator) @ mixing


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 1000))
def test_the_fid_of_identical_sets_is_zero(count: int, size: int, seed: int) -> None:
    """Also with fewer pictures than features, where the covariance is singular."""
    features = gaussian(count, size, seed)
    scale = float(features.double().var(dim=0).sum())
    assert fid(features, features).value <= 1e-6 * (1 + scale)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_a_shifted_set_is_at_the_squared_length_of_the_shift(size: int, seed: int) -> None:
    features = gaussian(50, size, seed).double()
    shift = torch.linspace(-1, 2, size).double()
    assert fid(features + shift, features).value == pytest.approx(float(shift.square().sum()), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=6))
def test_with_diagonal_covariances_the_distance_is_that_of_the_deviations(pairs: list[tuple[float, float]]) -> None:
    """sum (s1 - s2)^2 in closed form."""
    first, second = (torch.tensor(side, dtype=torch.double) for side in zip(*pairs, strict=True))
    zero = torch.zeros(len(pairs), dtype=torch.double)
    distance = frechet_distance(zero, torch.diag(first.square()), zero, torch.diag(second.square()))
    assert distance == pytest.approx(float((first - second).square().sum()), abs=1e-6)


def test_the_distance_is_that_of_scipys_matrix_root() -> None:
    first, second = gaussian(60, 7, 1).double().numpy(), gaussian(80, 7, 2).double().numpy() + 0.3
    covs = [np.cov(side, rowvar=False) for side in (first, second)]
    means = first.mean(axis=0) - second.mean(axis=0)
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = means @ means + np.trace(covs[0] + covs[1] - 2 * root)
    assert fid(torch.from_numpy(first), torch.from_numpy(second)).value == pytest.approx(expected)


def test_fid_ignores_the_order_of_pictures_and_sides() -> None:
    features, reference = gaussian(30, 4, 1), gaussian(40, 4, 2)
    forwards = fid(features, reference)
    assert forwards.value == pytest.approx(fid(features.flip(0), reference.flip(0)).value)
    assert forwards.value == pytest.approx(fid(reference, features).value)
    assert (forwards.pictures, forwards.reference) == (30, 40)


def test_fids_interval_holds_the_figure_and_narrows_with_more_pictures() -> None:
    reference = gaussian(500, 4, 1)
    few, many = (fid(gaussian(500, 4, 1)[:count] * 1.3, reference) for count in (40, 400))
    for figure in (few, many):
        assert figure.low <= figure.value <= figure.high
    assert many.high - many.low < few.high - few.low


def test_the_same_table_gives_the_same_intervals() -> None:
    features, reference = gaussian(30, 4, 1), gaussian(40, 4, 2)
    assert fid(features, reference) == fid(features, reference)
    assert fid(features, reference) != fid(features, reference, seed=1)


def test_fid_of_one_picture_is_refused() -> None:
    with pytest.raises(InputError, match="at least two pictures"):
        fid(torch.zeros(1, 3), torch.zeros(9, 3))


def test_an_interval_never_leaves_the_unit_range() -> None:
    for count in (1, 5, 1000):
        for share in (0.0, 0.5, 1.0):
            low, high = wilson_interval(share, count)
            assert 0.0 <= low <= share <= high <= 1.0


def test_a_confusion_counts_what_was_named_where_each_concept_was_prompted() -> None:
    prompted, predicted = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, -1, 1])
    column = Column(prompted, predicted, torch.ones(5))
    assert confusion([(column, 2)]) == [[1, 1, 0], [0, 2, 1], [0, 0, 0]]
    both = confusion([(column, 2), (column, 2)])
    assert [row[:2] + row[4:] for row in both[:2]] == [[1, 1, 0], [0, 2, 1]]
    assert [row[2:] for row in both[2:4]] == [[1, 1, 0], [0, 2, 1]]
    assert sum(map(sum, both)) == 10
