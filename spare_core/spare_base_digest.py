"""The name by which release 0.1.0 had :mod:`spare_core.models.digest`, for scripts that import it."""

from __future__ import annotations

from spare_core.models.digest import ARCHITECTURES, WANTED, digest_of_folder

__all__ = ["ARCHITECTURES", "WANTED", "digest_of_folder"]
