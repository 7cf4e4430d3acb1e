"""A store in S3 or anything that speaks its API."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from spare_core.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    SettingsError,
    StoreUnavailable,
)
from spare_core.files.addresses import S3Address, check_key, check_prefix
from spare_core.store import downloads, uploads
from spare_core.store.base import WORKERS, Entry, OnBytes, Store, no_progress, sha256
from spare_core.store.checksums import verdict
from spare_core.store.failures import (
    BODY_ERRORS,
    CONFLICT,
    PRECONDITION_FAILED,
    host_of,
    pauses,
    retries_of,
    status_of,
    translate,
    translated,
)
from spare_core.store.progress import ByteCounter

_FIRST_CONTACT: Final = 8.0
"""Seconds after which a storage that has not answered counts as down."""
_CONDITIONAL: Final = ("PutObject", "CompleteMultipartUpload")


def _attempts() -> int:
    """Tries of a request, with pauses that double up to 20 s; six, half a minute in all, unless AWS's own variable says
    otherwise.

    Raises:
        SettingsError: if it says no number.
    """
    given = os.environ.get("AWS_MAX_ATTEMPTS", "6")
    if not given.isdecimal() or not 1 <= int(given) <= 1000:
        raise SettingsError([f"AWS_MAX_ATTEMPTS is {given!r}; it must be a whole number from 1 to 1000, or unset"])
    return int(given)


class S3Store(Store):
    """See :class:`Store`. The endpoint must honour ``If-None-Match``, as S3, MinIO, Ceph and R2 do."""

    def __init__(self, address: S3Address) -> None:
        self.uri = address.uri
        self.bucket = address.bucket
        self._address = address
        self.client = self._new_client(total_max_attempts=_attempts(), connect_timeout=5, read_timeout=30)

    @cached_property
    def _session(self) -> Any:
        return boto3.session.Session()

    @cached_property
    def _hasty(self) -> Any:
        return self._new_client(total_max_attempts=3, connect_timeout=3, read_timeout=4)

    def _new_client(self, total_max_attempts: int, **timeouts: float) -> Any:
        """A client that cannot overwrite: every request that makes an object visible is conditional."""
        config = Config(
            retries={"mode": "standard", "total_max_attempts": total_max_attempts},
            max_pool_connections=WORKERS,
            # Checked by ourselves, over the whole file: botocore's check would come in the way of resuming.
            response_checksum_validation="when_required",
            **timeouts,
        )
        try:
            client = self._session.client("s3", config=config)
            self.host = host_of(client.meta.endpoint_url)
        except ValueError:  # not repeated: the endpoint it quotes may hold a password
            raise SettingsError(["AWS_ENDPOINT_URL is no URL; give http://host:port or https://host"]) from None
        except BotoCoreError as error:
            raise translate(error, self.uri, "") from None
        for operation in _CONDITIONAL:
            client.meta.events.register(f"before-parameter-build.s3.{operation}", _refuse_to_overwrite)
        return client

    def whole_key(self, key: str) -> str:
        """The key in the bucket of a key of this store."""
        return check_key(self._address.key(key))

    def check(self) -> None:
        """See :meth:`Store.check`."""
        next(self._pages(self._address.prefix, hasty=True))

    def skew(self) -> float:
        """See :meth:`Store.skew`: by the Date of an answer, which every one has."""
        with translated(self.uri, self.client):
            asked = time.time()
            answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._address.prefix, MaxKeys=1)
            said = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
        # It is the beginning of a second, and was written between question and answer.
        return max(asked - said - 1, min(0.0, time.time() - said))

    def read(self, key: str, most: int | None = None) -> bytes:
        """See :meth:`Store.read`."""
        uri, last = self.uri_of(check_key(key)), ""
        with translated(uri, self.client):
            for pause in (*pauses(), None):
                answer = self.client.get_object(Bucket=self.bucket, Key=self.whole_key(key), ChecksumMode="ENABLED")
                if most is not None and answer["ContentLength"] > most:
                    answer["Body"].close()
                    raise ObjectTooLarge(f"{uri} has {answer['ContentLength']} bytes; at most {most} are read")
                try:
                    content = answer["Body"].read()
                except BODY_ERRORS as error:
                    last = type(error).__name__
                except FlexibleChecksumError:  # botocore's own check, of the checksums that it knows
                    last = "checksum"
                else:
                    if verdict(answer, content) is not False:
                        return bytes(content)
                    last = "checksum"
                if pause is not None:
                    time.sleep(pause)
        if last == "checksum":
            raise ObjectChanged(f"{uri}: its bytes are not those its checksum names, in every try; it is damaged")
        raise StoreUnavailable(f"{uri}: {self.host} broke off in every one of several tries ({last}); try again later")

    def create(self, key: str, content: bytes) -> None:
        """See :meth:`Store.create`."""
        uri = self.uri_of(check_key(key))
        with translated(uri, self.client):
            for pause in (*pauses(), None):
                try:
                    self.client.put_object(
                        Bucket=self.bucket,
                        Key=self.whole_key(key),
                        Body=content,
                        Metadata=uploads.metadata(sha256(content)),
                    )
                    return
                except ClientError as error:
                    status = status_of(error)
                    if status == CONFLICT and pause is not None:
                        time.sleep(pause)
                    elif status != PRECONDITION_FAILED:
                        raise
                    # An earlier try of this very request may have gone through with its answer lost.
                    elif retries_of(error) and self.read(key) == content:
                        return
                    else:
                        raise ObjectExists(f"{uri} is there already; nothing was overwritten") from None

    def exists(self, key: str) -> bool:
        """See :meth:`Store.exists`."""
        return self.head(key) is not None

    def head(self, key: str) -> dict[str, Any] | None:
        """What the storage says of an object, checksums included; None if there is none."""
        with translated(self.uri_of(check_key(key)), self.client):
            try:
                answer = self.client.head_object(Bucket=self.bucket, Key=self.whole_key(key), ChecksumMode="ENABLED")
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
        return dict(answer)

    def entries(self, prefix: str, hasty: bool = False) -> list[Entry]:
        """Entries as in :class:`Store`; ``hasty`` gives up in under ten seconds if the storage does not answer at
        all."""
        whole = self._address.key(check_prefix(prefix))
        skip = len(self.whole_key("x")) - 1
        return [
            Entry(item["Key"][skip:], item["Size"], item["ETag"])
            for page in self._pages(f"{whole}/" if whole else "", hasty)
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # what consoles create to show an empty folder
        ]

    def entry(self, key: str) -> Entry | None:
        """The one object of that name as a listing shows it: of all keys that start with it, it is the first."""
        for item in next(self._pages(self.whole_key(check_key(key)), hasty=True)).get("Contents", []):
            if item["Key"] == self.whole_key(key):
                return Entry(key, item["Size"], item["ETag"])
        return None

    def upload(self, folder: Path, prefix: str, on_progress: OnBytes = no_progress) -> None:
        """See :meth:`Store.upload`."""
        uploads.upload(self, folder, prefix, on_progress)

    def download(self, prefix: str, folder: Path, on_progress: OnBytes = no_progress) -> None:
        """See :meth:`Store.download`."""
        base = check_prefix(prefix)

        def attempt() -> None:
            found = {entry.key[len(base) + 1 if base else 0 :]: entry for entry in self.entries(base)}
            if not found:
                raise ObjectMissing(f"there is nothing under {self.uri_of(base)}; check bucket and prefix")
            downloads.download(self, found, folder, on_progress)

        downloads.until_unchanged(attempt)

    def _put(self, key: str, content: bytes | Path, digest: str) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        there = self.head(key)
        if there is None:
            uploads.send(self, {key: uploads.Content(content, digest, size)}, ByteCounter(size, no_progress))
        elif there["ContentLength"] != size:
            raise ObjectChanged(f"{self.uri_of(key)} has {there['ContentLength']} bytes, not {size}: it is damaged")

    def _pages(self, prefix: str, hasty: bool) -> Iterator[dict[str, Any]]:
        """The pages of a listing; the first one decides whether the storage is there."""
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix}
        with translated(f"s3://{self.bucket}/{prefix}", self.client):
            page = self._within(lambda: self._hasty.list_objects_v2(**request)) if hasty else None
            while True:
                page = page or self.client.list_objects_v2(**request)
                yield page
                if not page.get("IsTruncated"):
                    return
                request["ContinuationToken"] = page["NextContinuationToken"]
                page = None

    def _within(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of ``call``, or an error after a few seconds, however the network hangs."""
        result: list[dict[str, Any]] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(call())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(_FIRST_CONTACT)
        if failure:
            raise failure[0]
        if not result:
            raise StoreUnavailable(
                f"{self.uri}: {self.host} did not answer within {_FIRST_CONTACT:.0f} s; check that the storage runs, "
                "the network, and AWS_ENDPOINT_URL"
            )
        return result[0]


def _refuse_to_overwrite(params: dict[str, Any], **context: Any) -> None:
    params["IfNoneMatch"] = "*"
