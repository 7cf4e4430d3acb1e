"""An adapter that was tampered with: less of it, or coarser. What whoever stores, merges or quantises it may do.

Taken off altogether, an adapter erases nothing: to ship it and the base apart is to ship the concept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from spare_core.adapters.algebra import compressed
from spare_core.adapters.low_rank import Adapter, DeltaUpdate, LowRankUpdate

_SCALES: Final = (0.5, 0.75)
_INT8: Final = 127


def forms(adapter: Adapter) -> dict[str, Callable[[], Adapter]]:
    """The adapter in other forms, by what was done to it, each made when it is asked for. One that is no low-rank
    update has no ranks to cut."""
    found: dict[str, Callable[[], Adapter]] = {
        f"scaled to {scale:g}": partial(scaled, adapter, scale) for scale in _SCALES
    }
    low_rank = [one for one in adapter.updates.values() if isinstance(one, LowRankUpdate) and one.entries is None]
    if len(low_rank) == len(adapter.updates):
        rank = max(len(one.down) for one in low_rank)
        found["half of its rank"] = lambda: compressed(adapter, max(1, rank // 2)).adapter
    found["int8"] = lambda: Adapter(
        {name: DeltaUpdate(_int8(one.delta().detach())) for name, one in adapter.updates.items()}
    )
    return found


def in_form(adapter: Adapter, form: str) -> Adapter:
    """The adapter in one of its :func:`forms`; as it is, where it has no such form."""
    make = forms(adapter).get(form)
    return make() if make else adapter


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """``scale`` times the adapter's change of every weight."""
    return Adapter({name: DeltaUpdate(scale * one.delta().detach()) for name, one in adapter.updates.items()})


def _int8(delta: Tensor) -> Tensor:
    """Rounded to 255 levels a row, symmetric, as int8 weights are kept."""
    step = delta.abs().amax(dim=1, keepdim=True) / _INT8
    return torch.where(step > 0, (delta / step.clamp_min(1e-30)).round() * step, delta)
