"""How many predictions a GPU's memory has room for at once.

Below some rows a call takes as long as one of a single row: launches, not arithmetic. So as many are asked at once as
fit into half of what is free, by what a row was measured to take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

MOST: Final = 128
"""Above that nothing is won on any GPU."""
_SHARE: Final = 0.5
"""Of the free memory: a share of it lies in pieces, and half-made results are kept beside a call."""
_ASKED: Final = 2
"""Rows that are measured."""


def rows_that_fit(free: int, row: float) -> int:
    """How many rows of so many bytes are asked at once with so many free, a power of two, so that a little more or less
    is free does not change it; two at least, as guidance asks."""
    fit = max(2, min(MOST, int(_SHARE * free / max(row, 1.0))))
    return 1 << (fit.bit_length() - 1)


def free_bytes(device: torch.device) -> int:
    """What a CUDA device has left, with what torch keeps for itself and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def bytes_a_row(ask: Callable[[int], object], device: torch.device) -> float:
    """What one row takes on a CUDA device, by a call of ``ask`` with a few. The device's peak is counted from here on,
    so this is for the first prediction of a process."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    ask(_ASKED)
    return (torch.cuda.max_memory_allocated(device) - before) / _ASKED
