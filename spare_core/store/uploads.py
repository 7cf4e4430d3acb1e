"""Local files to objects: boto3's own transfers on a client that cannot overwrite."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.subscribers import BaseSubscriber

from spare_core.errors import InputError, ObjectExists, StoreUnavailable
from spare_core.files.addresses import check_prefix
from spare_core.store.base import PART, WORKERS, OnBytes, files_of, sha256
from spare_core.store.checksums import SHA256, verdict
from spare_core.store.failures import CONFLICT, PRECONDITION_FAILED, pauses, status_of, translated
from spare_core.store.progress import ByteCounter

if TYPE_CHECKING:
    from spare_core.store.s3 import S3Store

_MULTIPART: Final = 2 * PART
"""Bytes from which on a file is sent in parts."""
_CONFIG: Final = TransferConfig(
    multipart_threshold=_MULTIPART,
    multipart_chunksize=PART,
    max_concurrency=WORKERS,
    preferred_transfer_client="classic",  # the other one does not know of our client's conditions
)


class Content(NamedTuple):
    """What is to be sent: bytes or a file, its sha256, its size in bytes."""

    source: bytes | Path
    digest: str
    size: int


def metadata(digest: str) -> dict[str, str]:
    """What we write beside an object, for :func:`spare_core.store.checksums.verdict`."""
    return {SHA256: digest}


def upload(store: S3Store, folder: Path, prefix: str, on_progress: OnBytes) -> None:
    """See :meth:`Store.upload`; nothing is sent if one of the names is taken by other content."""
    base = check_prefix(prefix)
    files = {"/".join(part for part in (base, name) if part): path for name, path in files_of(folder).items()}
    there = set(store.list(base)) & files.keys()
    with ThreadPoolExecutor(WORKERS) as pool:
        digests = dict(zip(files, pool.map(sha256, files.values()), strict=True))
        contents = {key: Content(path, digests[key], path.stat().st_size) for key, path in files.items()}
        list(pool.map(lambda key: _check_same(store, key, contents[key]), sorted(there)))
    counter = ByteCounter(sum(content.size for content in contents.values()), on_progress)
    counter.add(sum(contents[key].size for key in there))
    send(store, {key: content for key, content in contents.items() if key not in there}, counter)


def send(store: S3Store, contents: Mapping[str, Content], counter: ByteCounter) -> None:
    """Create all objects, several at a time; those that turn out to be there with the same content are fine.

    Raises:
        ObjectExists: if one is there with other content.
    """
    waiting = dict(contents)
    for pause in (*pauses(), None):
        waiting = _send_once(store, waiting, counter)
        if not waiting:
            return
        if pause is not None:
            time.sleep(pause)
    raise StoreUnavailable(f"{store.uri_of(min(waiting))}: other writers stood in the way in every try; try again")


def _send_once(store: S3Store, contents: Mapping[str, Content], counter: ByteCounter) -> dict[str, Content]:
    """Try each object once; returns those for which another writer was under way, whose end decides."""
    again = {}
    with create_transfer_manager(store.client, _CONFIG) as manager:
        futures = {
            key: manager.upload(
                io.BytesIO(content.source) if isinstance(content.source, bytes) else str(content.source),
                store.bucket,
                store.whole_key(key),
                extra_args={"Metadata": metadata(content.digest)},
                subscribers=[_Counting(counter)],
            )
            for key, content in contents.items()
        }
        # Leaving with an error cancels the rest and aborts what was sent in parts.
        for key, future in futures.items():
            with translated(store.uri_of(key), store.client), _local_errors(contents[key]):
                try:
                    future.result()
                except ClientError as error:
                    if status_of(error) == PRECONDITION_FAILED:
                        _check_same(store, key, contents[key])
                    elif status_of(error) == CONFLICT or _code(error) == "NoSuchUpload":
                        again[key] = contents[key]
                    else:
                        raise
    for key, content in contents.items():
        if content.size >= _MULTIPART and key not in again:
            _abort_leftovers(store, key)
    return again


def _check_same(store: S3Store, key: str, content: Content) -> None:
    described = store.head(key)
    if described is None or described["ContentLength"] != content.size or not verdict(described, content.source):
        raise ObjectExists(
            f"{store.uri_of(key)} is there already, and not with this content; nothing was overwritten. Give another "
            "prefix"
        )


def _abort_leftovers(store: S3Store, key: str) -> None:
    """Drop the parts that killed uploads of this object left: they cost money and cannot become it any more."""
    # Not every endpoint lists them and not every user may: then the bucket's lifecycle rule has to do it.
    with contextlib.suppress(ClientError, BotoCoreError):
        found = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.whole_key(key))
        for item in found.get("Uploads", []):
            if item["Key"] == store.whole_key(key):
                store.client.abort_multipart_upload(Bucket=store.bucket, Key=item["Key"], UploadId=item["UploadId"])


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _local_errors(content: Content) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BotoCoreError):
            raise
        raise InputError(f"cannot read {content.source!s}: {error.strerror or error}") from None


class _Counting(BaseSubscriber):
    def __init__(self, counter: ByteCounter) -> None:
        self._counter = counter

    def on_progress(self, future: Any, bytes_transferred: int, **more: Any) -> None:
        self._counter.add(bytes_transferred)
