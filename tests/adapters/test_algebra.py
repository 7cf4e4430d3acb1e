"""Putting adapters together is exact where it says so, and says how far from exact it is where not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spare_core.adapters.algebra import compressed, concatenated
from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.low_rank import Adapter, DeltaUpdate, LowRankUpdate
from spare_core.errors import AdapterError

SHAPES = {"a": (6, 5), "b": (4, 9)}


def random_adapter(seed: int, rank: int = 2, scale: float = 0.5) -> Adapter:
    """Some rows and columns of each layer move."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name, (rows, columns) in SHAPES.items():
        mask = LayerMask(torch.rand(rows, generator=generator) < 0.7, torch.rand(columns, generator=generator) < 0.7)
        down, up = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
        updates[name] = LowRankUpdate(down, up, scale, mask)
    return Adapter(updates)


def still(rank: int = 2) -> Adapter:
    return Adapter({
        name: LowRankUpdate(torch.zeros(rank, c), torch.zeros(r, rank), 1.0,
                            LayerMask(torch.zeros(r, dtype=torch.bool), torch.zeros(c, dtype=torch.bool)))
        for name, (r, c) in SHAPES.items()
    })  # fmt: skip


def deltas(*adapters: Adapter) -> dict[str, torch.Tensor]:
    return {name: sum(adapter.updates[name].delta() for adapter in adapters).detach() for name in SHAPES}


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 3)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_concatenated_is_the_sum_and_has_the_ranks_sum(parts: list[tuple[int, int]]) -> None:
    adapters = [random_adapter(seed, rank) for seed, rank in parts]
    together = concatenated(adapters)
    for name, expected in deltas(*adapters).items():
        torch.testing.assert_close(together.updates[name].delta().detach(), expected)
        assert len(together.updates[name].down) == sum(rank for _, rank in parts)


def test_compressed_to_all_of_the_rank_is_the_sum() -> None:
    adapters = [random_adapter(0), random_adapter(1)]
    found = compressed(concatenated(adapters), 4)
    for name, expected in deltas(*adapters).items():
        torch.testing.assert_close(found.adapter.updates[name].delta().detach(), expected, atol=1e-5, rtol=1e-5)
    assert found.error == found.worst == 0.0


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_compressed_is_the_nearest_of_its_rank_and_says_how_near(rank: int) -> None:
    """As a dense singular value decomposition gives it."""
    adapters = [random_adapter(seed) for seed in (0, 1)]
    found = compressed(concatenated(adapters), rank)
    lost, whole, worst = 0.0, 0.0, 0.0
    for name, wanted in deltas(*adapters).items():
        u, values, v = torch.linalg.svd(wanted, full_matrices=False)
        nearest = (u[:, :rank] * values[:rank]) @ v[:rank]
        update = found.adapter.updates[name]
        torch.testing.assert_close(update.delta().detach(), nearest, atol=1e-5, rtol=1e-4)
        assert update.up.shape[1] == rank
        torch.testing.assert_close(update.down.norm(dim=1), torch.ones(rank))
        here, all_of_it = float((wanted - nearest).square().sum()), float(wanted.square().sum())
        lost, whole, worst = lost + here, whole + all_of_it, max(worst, (here / all_of_it) ** 0.5)
    assert found.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert found.worst == pytest.approx(worst, rel=1e-4)


def test_a_rank_beyond_what_there_is_is_filled_with_nothing() -> None:
    """Hot-swapping needs equal ranks."""
    found = compressed(random_adapter(0, rank=1), 3)
    assert {update.up.shape[1] for update in found.adapter.updates.values()} == {3}
    assert found.error == 0.0
    for name, expected in deltas(random_adapter(0, rank=1)).items():
        torch.testing.assert_close(found.adapter.updates[name].delta().detach(), expected, atol=1e-5, rtol=1e-5)


def test_layers_that_do_not_move_stay_still() -> None:
    for adapter in (concatenated([still(), still()]), compressed(concatenated([still(), still()]), 2).adapter):
        assert not any(update.moves for update in adapter.updates.values())
    assert compressed(still(), 2).error == 0.0


def test_what_cannot_be_put_together_is_refused() -> None:
    other = Adapter({"a": random_adapter(0).updates["a"]})
    with pytest.raises(AdapterError, match="no adapter to put together"):
        concatenated([])
    with pytest.raises(AdapterError, match="other architectures"):
        concatenated([random_adapter(0), other])
    sparse = Adapter({name: DeltaUpdate(torch.ones(shape)) for name, shape in SHAPES.items()})
    with pytest.raises(AdapterError, match="--mask weight"):
        concatenated([random_adapter(0), sparse])
    with pytest.raises(AdapterError, match="--mask weight"):
        compressed(sparse, 2)
