"""The name by which release 0.1.0 had :mod:`spare_core.adapters.directory`, for scripts that import it."""

from __future__ import annotations

from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter

__all__ = ["StoredAdapter", "load_adapter", "save_adapter"]
