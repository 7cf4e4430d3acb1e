"""Which weights of a layer an adapter may move."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerMask:
    """``rows`` bool ``(out,)`` and ``columns`` bool ``(in,)``; or ``entries`` bool ``(out, in)`` for a weight mask."""

    rows: Tensor
    columns: Tensor
    entries: Tensor | None = None

    def dense(self) -> Tensor:
        """The mask as bool ``(out, in)``."""
        return self.entries if self.entries is not None else self.rows[:, None] & self.columns[None, :]

    def count(self) -> int:
        """Number of weights that may move."""
        return int(self.entries.sum()) if self.entries is not None else int(self.rows.sum()) * int(self.columns.sum())


Masks = dict[str, LayerMask]
