"""For adapters registered by release 0.1.0: the loader that travels inside them imports this module to fetch a base
model from S3. Everything else uses :mod:`spare_core.models.files`.
"""

from __future__ import annotations

from spare_core.models.files import find_model

__all__ = ["find_model"]
