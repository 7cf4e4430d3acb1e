"""One adapter that does what several do together: exactly, or as near as a fixed rank comes.

Updates of one layer add up. With the A of all above each other and the B of all beside each other they are one low-rank
update, exactly, whose rank is the sum of theirs. The nearest update of a given rank (Eckart, Young) keeps the largest
singular values of that sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.errors import AdapterError


class Compressed(NamedTuple):
    """An adapter of a fixed rank, and how far its change of the weights is from what was asked for, as a share of that
    (Frobenius norm): over all layers, and in the worst one."""

    adapter: Adapter
    error: float
    worst: float


def concatenated(adapters: Sequence[Adapter]) -> Adapter:
    """The exact sum; its rank is the sum of theirs.

    Raises:
        AdapterError: if they are of other layers, or one of them is no low-rank update.
    """
    updates = {}
    for name in _layers(adapters):
        downs, ups = zip(*(_factors(adapter, name) for adapter in adapters), strict=True)
        updates[name] = _update(torch.cat(downs), torch.cat(ups, dim=1))
    return Adapter(updates)


@torch.no_grad()
def compressed(together: Adapter, rank: int) -> Compressed:
    """The nearest of rank ``rank`` to an adapter. A of unit rows, as a fresh one: an optimiser may go on from it.

    Raises:
        AdapterError: if it is no low-rank update.
    """
    updates, lost, whole, worst = {}, 0.0, 0.0, 0.0
    for name in together.updates:
        old_down, old_up = _factors(together, name)
        # The product of two thin matrices has the singular values of the product of their triangles.
        left, upper = torch.linalg.qr(old_up.double())
        right, lower = torch.linalg.qr(old_down.double().T)
        u, values, v = torch.linalg.svd(upper @ lower.T)
        up = left @ (u[:, :rank] * values[:rank])
        down = v[:rank] @ right.T
        padding = rank - len(down)
        if padding > 0:
            up = torch.cat([up, up.new_zeros(len(up), padding)], dim=1)
            down = torch.cat([down, down.new_zeros(padding, down.shape[1])])
        if not values.any():
            down = torch.zeros_like(down)
        updates[name] = _update(down.to(old_down), up.to(old_up))
        squares = values.square()
        here, all_of_it = float(squares[rank:].sum()), float(squares.sum())
        lost, whole = lost + here, whole + all_of_it
        worst = max(worst, (here / all_of_it) ** 0.5 if all_of_it else 0.0)
    return Compressed(Adapter(updates), (lost / whole) ** 0.5 if whole else 0.0, worst)


def _layers(adapters: Sequence[Adapter]) -> list[str]:
    if not adapters:
        raise AdapterError("there is no adapter to put together; give one or more")
    first = adapters[0].updates
    for adapter in adapters[1:]:
        if {name: update.shape for name, update in adapter.updates.items()} != {
            name: update.shape for name, update in first.items()
        }:
            raise AdapterError("the adapters are of other layers; they were made for other architectures")
    return list(first)


def _factors(adapter: Adapter, name: str) -> tuple[Tensor, Tensor]:
    """A and B of an update with its scale in B."""
    update = adapter.updates[name]
    if not isinstance(update, LowRankUpdate) or update.entries is not None:
        raise AdapterError(
            "an adapter of single weights (--mask weight) is no low-rank update and cannot be put together with "
            "others; erase that concept with another mask"
        )
    return update.down.detach(), update.up.detach() * update.scale


def _update(down: Tensor, up: Tensor) -> LowRankUpdate:
    return LowRankUpdate(down, up, 1.0, LayerMask(up.ne(0).any(dim=1), down.ne(0).any(dim=0)))
