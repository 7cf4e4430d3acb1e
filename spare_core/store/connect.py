"""From an address to the store behind it; boto3 is imported only for one in S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spare_core.errors import StoreError
from spare_core.files.addresses import S3Address, parse
from spare_core.store.base import Store
from spare_core.store.folder import FolderStore

if TYPE_CHECKING:
    from spare_core.store.s3 import S3Store


def open_store(uri: str) -> Store:
    """The store at ``uri``: "s3://bucket/prefix" or an absolute local folder. Nothing is contacted yet.

    Raises:
        SettingsError: if the address is neither.
        StoreError: if boto3 is not installed.
    """
    address = parse(uri)
    return FolderStore(address) if isinstance(address, str) else s3_store(address)


def s3_store(address: S3Address) -> S3Store:
    """The store at an address in S3.

    Raises:
        StoreError: if boto3 is not installed.
    """
    try:
        from spare_core.store.s3 import S3Store
    except ImportError as error:
        raise StoreError(
            f"{address.uri} needs boto3, which is not there ({error}); pip install 'spare-unlearning[server]'"
        ) from None
    return S3Store(address)
