"""Chance comes in named streams that depend on the run's seed and their own name alone."""

from __future__ import annotations

import itertools

import torch

from spare_core.streams import stream, stream_seed


def test_a_stream_repeats_and_differs_from_every_other() -> None:
    names = [
        (seed, *name) for seed in (0, 1, 2**31 - 1) for name in (("bank",), ("batch", 0), ("batch", 1), ("batch",))
    ]
    draws = [torch.rand(4, generator=stream(*name)) for name in names]
    assert all(
        torch.equal(torch.rand(4, generator=stream(*name)), drawn) for name, drawn in zip(names, draws, strict=True)
    )
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(draws, 2))


def test_seeds_are_the_same_everywhere() -> None:
    """Fixed for good: a change here changes the bytes of every adapter."""
    assert stream_seed(0, "bank") == 5409436206264819718
    assert 0 <= stream_seed(7, "batch", 3) < 2**63
