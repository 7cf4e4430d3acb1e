"""Training goes to the timesteps where concept and surrogate part, evenly within a batch, reproducibly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spare_core.method.gap import (
    StateSampler,
    TimestepProfile,
    TimestepSampler,
    bin_edges,
    gap_probabilities,
    profile_timesteps,
    window,
)
from spare_core.method.settings import EraseSettings, TimestepSampling
from tests.support.toy import CONCEPT, EMBEDDINGS, SURROGATE, ToyDenoiser, toy_bank

gaps = st.lists(st.floats(0.0, 1e6, width=32), min_size=1, max_size=25).map(torch.tensor)
distributions = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12).map(
    lambda weights: torch.tensor(weights, dtype=torch.double) / sum(weights)
)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def profile(gap: list[float], edges: list[int] | None = None) -> TimestepProfile:
    """A profile over unit bins unless told otherwise."""
    return TimestepProfile(torch.tensor(edges or range(len(gap) + 1)), torch.tensor(gap))


# --- the profile -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.data())
@settings(deadline=None)
def test_bins_cover_every_timestep_evenly(num_timesteps: int, data: st.DataObject) -> None:
    bins = data.draw(st.integers(1, num_timesteps))
    edges = bin_edges(num_timesteps, bins)
    assert (edges[0], edges[-1], len(edges)) == (0, num_timesteps, bins + 1)
    widths = edges.diff()
    assert widths.min() >= 1
    assert widths.max() - widths.min() <= 1


def test_the_profile_is_the_squared_gap_between_concept_and_surrogate() -> None:
    denoiser = ToyDenoiser(timed=True)
    found = profile_timesteps(toy_bank(denoiser), 10, 5)  # five states, at 0, 2, 4, 6, 8
    apart = denoiser.weights.text(EMBEDDINGS[CONCEPT] - EMBEDDINGS[SURROGATE]).pow(2).mean()
    assert found.edges.tolist() == [0, 2, 4, 6, 8, 10]
    torch.testing.assert_close(found.gap, (torch.arange(0, 10, 2) / 10).pow(2) * apart)


def test_a_bin_without_a_state_lies_between_its_neighbours() -> None:
    found = profile_timesteps(toy_bank(ToyDenoiser(timed=True)), 10, 10).gap
    torch.testing.assert_close(found[1::2][:4], (found[0:8:2] + found[2:10:2]) / 2)
    assert found[9] == found[8]


def test_a_model_with_few_timesteps_gets_few_bins() -> None:
    assert len(profile_timesteps(toy_bank(ToyDenoiser()), 10, 1000).gap) == 10


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_p_is_the_gap_to_the_power_gamma_over_a_uniform_floor() -> None:
    gap = torch.tensor([1.0, 3.0, 0.0, 4.0])
    expect = {
        (1.0, 0.0): [1 / 8, 3 / 8, 0, 4 / 8],
        (2.0, 0.0): [1 / 26, 9 / 26, 0, 16 / 26],
        (1.0, 0.2): [0.8 / 8 + 0.05, 0.8 * 3 / 8 + 0.05, 0.05, 0.8 * 4 / 8 + 0.05],
        (0.0, 0.3): [1 / 4] * 4,
        (1.0, 1.0): [1 / 4] * 4,
    }
    for (gamma, floor), probabilities in expect.items():
        assert gap_probabilities(gap, gamma, floor).tolist() == pytest.approx(probabilities, abs=1e-12)


@given(gaps, st.floats(0.0, 16.0), st.floats(0.0, 1.0))
def test_p_is_a_distribution_above_its_floor(gap: Tensor, gamma: float, floor: float) -> None:
    probabilities = gap_probabilities(gap, gamma, floor)
    assert float(probabilities.sum()) == pytest.approx(1.0)
    assert float(probabilities.min()) >= floor / len(gap) * (1 - 1e-12)


@given(gaps, st.floats(0.1, 4.0))
def test_a_larger_gap_is_never_less_likely(gap: Tensor, gamma: float) -> None:
    ordered = gap_probabilities(gap.sort().values, gamma, 0.1)
    assert (ordered.diff() >= -1e-12).all(), "but for rounding"


def test_without_any_gap_p_is_uniform() -> None:
    assert gap_probabilities(torch.zeros(5), 1.0, 0.3).tolist() == pytest.approx([0.2] * 5)


# --- the window ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "mass", "expected"),
    [
        ([1, 1, 6, 1, 1], 0.6, (2, 3)),
        ([1, 1, 6, 1, 1], 0.61, (1, 3)),
        ([1, 1, 6, 1, 1], 1.0, (0, 5)),
        ([0, 5, 5, 0], 1.0, (1, 3)),
        ([3, 0, 0, 3], 0.5, (0, 1)),
        ([0, 0, 0, 2], 0.8, (3, 4)),
        ([7], 0.8, (0, 1)),
    ],
)
def test_the_window_is_the_shortest_run_that_holds_the_mass(
    gap: list[float], mass: float, expected: tuple[int, int]
) -> None:
    assert window(torch.tensor(gap, dtype=torch.float), mass) == expected


@given(gaps, st.floats(0.05, 1.0))
def test_no_shorter_run_holds_the_mass(gap: Tensor, mass: float) -> None:
    first, last = window(gap, mass)
    values = gap.double()
    assert 0 <= first < last <= len(gap)
    assert values[first:last].sum() >= mass * values.sum() * (1 - 1e-9)
    if last - first > 1:
        shorter = values.unfold(0, last - first - 1, 1).sum(dim=1).max()
        assert shorter <= mass * values.sum() * (1 + 1e-9)


# --- the samplers ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
@settings(deadline=None)
def test_each_stratum_is_hit_exactly_once(strata: int, width: int, seed: int) -> None:
    count = strata * width
    sampler = TimestepSampler(torch.arange(count + 1), torch.full((count,), 1 / count, dtype=torch.double))
    drawn = sampler.sample(strata, seeded(seed))
    assert sorted((drawn // width).tolist()) == list(range(strata))


@given(distributions, st.integers(1, 40), st.integers(0, 2**31))
@settings(deadline=None)
def test_no_bin_is_drawn_more_than_one_off_its_share(probabilities: Tensor, count: int, seed: int) -> None:
    edges = torch.arange(len(probabilities) + 1) * 3
    drawn = TimestepSampler(edges, probabilities).sample(count, seeded(seed))
    hits = torch.bincount(drawn // 3, minlength=len(probabilities))
    assert hits.sum() == count
    # A bin's share of the strata starts and ends within a stratum: one more or less at each end, never further.
    assert ((hits - probabilities * count).abs() < 2).all()


def test_frequencies_follow_p() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.double)
    sampler = TimestepSampler(torch.arange(5), probabilities)
    drawn = torch.cat([sampler.sample(3, seeded(seed)) for seed in range(1000)])
    frequencies = torch.bincount(drawn, minlength=4) / len(drawn)
    assert frequencies.tolist() == pytest.approx(probabilities.tolist(), abs=0.02)
    assert frequencies[1] == 0


def test_places_in_a_batch_are_exchangeable() -> None:
    sampler = TimestepSampler(torch.arange(9), torch.full((8,), 1 / 8, dtype=torch.double))
    means = torch.stack([sampler.sample(4, seeded(seed)) for seed in range(1000)]).double().mean(dim=0)
    assert means.tolist() == pytest.approx([3.5] * 4, abs=0.3)


@given(
    gaps.filter(lambda gap: len(gap) >= 2),
    st.sampled_from(["gap", "uniform", "window", "threshold"]),
    st.integers(0, 2**31),
)
@settings(deadline=None)
def test_timesteps_stay_within_the_schedule(gap: Tensor, kind: TimestepSampling, seed: int) -> None:
    made = TimestepProfile(bin_edges(1000, len(gap)), gap)
    drawn = TimestepSampler.from_profile(made, EraseSettings(timesteps=kind)).sample(16, seeded(seed))
    assert drawn.dtype == torch.int64
    assert drawn.shape == (16,)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 1000


def test_uniform_is_uniform_over_timesteps_even_where_bins_are_not() -> None:
    made = profile([1.0, 100.0, 1.0], edges=[0, 2, 3, 10])
    sampler = TimestepSampler.from_profile(made, EraseSettings(timesteps="uniform"))
    assert sampler.probabilities.tolist() == pytest.approx([0.2, 0.1, 0.7])
    drawn = torch.cat([sampler.sample(10, seeded(seed)) for seed in range(1000)])
    assert (torch.bincount(drawn, minlength=10) / len(drawn)).tolist() == pytest.approx([0.1] * 10, abs=0.01)


def test_a_window_draws_from_nowhere_else() -> None:
    made = profile([0.0, 1.0, 1.0, 0.0], edges=[0, 10, 14, 20, 30])
    sampler = TimestepSampler.from_profile(made, EraseSettings(timesteps="window", window_mass=1.0))
    assert sampler.probabilities.tolist() == pytest.approx([0.0, 0.4, 0.6, 0.0])
    drawn = torch.cat([sampler.sample(10, seeded(seed)) for seed in range(200)])
    assert set(drawn.tolist()) == set(range(10, 20))


def test_a_threshold_draws_where_the_gap_is_large_and_uniformly_there() -> None:
    """Bins of 10, 4 and 6 timesteps have at least half of the largest gap."""
    made = profile([0.5, 1.0, 0.7, 0.49], edges=[0, 10, 14, 20, 30])
    sampler = TimestepSampler.from_profile(made, EraseSettings(timesteps="threshold"))
    assert sampler.probabilities.tolist() == pytest.approx([0.5, 0.2, 0.3, 0.0])
    every = TimestepSampler.from_profile(profile([0.0, 0.0]), EraseSettings(timesteps="threshold"))
    assert every.probabilities.tolist() == pytest.approx([0.5, 0.5])


def test_gap_draws_by_the_equation() -> None:
    settings_ = EraseSettings(timesteps="gap", gamma=2.0, floor=0.1)
    sampler = TimestepSampler.from_profile(profile([1.0, 2.0]), settings_)
    assert sampler.probabilities.tolist() == pytest.approx([0.9 / 5 + 0.05, 0.9 * 4 / 5 + 0.05])


def test_the_same_generator_draws_the_same() -> None:
    sampler = TimestepSampler(torch.arange(101), torch.full((100,), 0.01, dtype=torch.double))
    assert torch.equal(sampler.sample(8, seeded(7)), sampler.sample(8, seeded(7)))
    assert not torch.equal(sampler.sample(8, seeded(7)), sampler.sample(8, seeded(8)))


# --- states ----------------------------------------------------------------------------------------------------------


@given(distributions, st.lists(st.integers(0, 35), min_size=1, max_size=30), st.integers(0, 2**31))
@settings(deadline=None)
def test_states_come_from_the_bin_drawn_or_the_nearest_that_has_any(
    probabilities: Tensor, times: list[int], seed: int
) -> None:
    edges = torch.arange(len(probabilities) + 1) * 3
    states = torch.tensor(times).clamp(max=int(edges[-1]) - 1)
    sampler = TimestepSampler(edges, probabilities)
    drawn = StateSampler(sampler, states).sample(8, seeded(seed))
    wanted = sampler.sample(8, seeded(seed)) // 3
    distance = (states[None, :] // 3 - wanted[:, None]).abs()
    assert torch.equal((states[drawn] // 3 - wanted).abs(), distance.min(dim=1).values)


def test_states_of_a_bin_are_drawn_alike() -> None:
    sampler = TimestepSampler(torch.tensor([0, 10, 20]), torch.tensor([0.75, 0.25], dtype=torch.double))
    states = StateSampler(sampler, torch.tensor([12, 3, 4, 15, 3]))
    drawn = torch.cat([states.sample(4, seeded(seed)) for seed in range(2000)])
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    assert shares.tolist() == pytest.approx([0.125, 0.25, 0.25, 0.125, 0.25], abs=0.02)
