"""Random streams by name: every use of chance has a stream of its own, so one draw more here changes nothing there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """The seed of the stream ``names`` of a run with that ``seed``: 63 bits of a sha256."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """The stream ``names`` as torch's generator, on the CPU: the same on every device."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, *names))
