"""Object storage and local folders behind one interface: s3:// through boto3, which is imported nowhere else.

Objects are immutable: every write is a conditional create, so that of two writers one wins and nothing is overwritten.
Credentials come from the usual AWS chain and the endpoint from ``AWS_ENDPOINT_URL``; neither is ever a parameter.
"""

from __future__ import annotations

from spare_core.store.base import Entry, Store
from spare_core.store.cache import fetch
from spare_core.store.connect import open_store
from spare_core.store.folder import FolderStore

__all__ = ["Entry", "FolderStore", "Store", "fetch", "open_store"]
