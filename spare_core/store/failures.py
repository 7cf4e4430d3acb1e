"""botocore's errors as ours: which of them are worth another try, and what a person can do about the others.

A message holds the address, the host of the endpoint and the service's error code; never what the service or botocore
wrote, because that may repeat an endpoint with its password, or a key.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from spare_core.errors import ObjectChanged, ObjectDenied, ObjectExists, ObjectMissing, StoreError, StoreUnavailable

BODY_ERRORS: Final = (HTTPClientError, IncompleteReadError)
"""How the body of an answer ends too early, after botocore's own retries are over."""
CONFLICT: Final = 409
PRECONDITION_FAILED: Final = 412
_TRIES: Final = 6
_CREDENTIALS: Final = (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_BUSY: Final = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "Throttling",
    "RequestLimitExceeded",
}
_EXPIRED: Final = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_REGION: Final = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: at most five, doubling, jittered, no more than 15 s together."""
    for attempt in range(_TRIES - 1):
        yield random.uniform(0.0, 0.5 * 2**attempt)


def host_of(endpoint: str) -> str:
    """Host and port of an endpoint, without the user and password that may stand before them."""
    parts = urlsplit(endpoint)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def status_of(error: Exception) -> int:
    """The HTTP status of an answer; 0 if there was none."""
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0)) if isinstance(error, ClientError) else 0


def retries_of(error: ClientError) -> int:
    """How often botocore had sent the request again before this answer came."""
    return int(error.response["ResponseMetadata"].get("RetryAttempts", 0))


@contextlib.contextmanager
def translated(uri: str, client: Any) -> Iterator[None]:
    """Raise botocore's errors as ours, naming ``uri``."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise translate(error, uri, client.meta.endpoint_url) from None


def translate(error: Exception, uri: str, endpoint: str) -> StoreError:
    """One of botocore's errors as one of ours."""
    if isinstance(error, ClientError):
        return _answered(error, uri, host_of(endpoint))
    name, host = type(error).__name__, host_of(endpoint)
    if isinstance(error, _CREDENTIALS):
        return ObjectDenied(
            f"{uri}: no usable credentials ({name}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or "
            "give the pod's service account a role"
        )
    if isinstance(error, SSLError):
        return StoreUnavailable(f"{uri}: {host} answers, but not with a trusted certificate; set AWS_CA_BUNDLE")
    if isinstance(error, (NoConnectionError, *BODY_ERRORS)):
        return StoreUnavailable(
            f"{uri}: {host} could not be reached, or broke off, in every one of several tries ({name}); check that the "
            "storage runs, the network, and AWS_ENDPOINT_URL"
        )
    return StoreError(f"{uri}: the request could not be made ({name}); check the AWS_* variables and ~/.aws/config")


def _answered(error: ClientError, uri: str, host: str) -> StoreError:
    code, status = str(error.response.get("Error", {}).get("Code", "")), status_of(error)
    said = f"{host} answered {status} {code}" if code != str(status) else f"{host} answered {status}"
    if code == "NoSuchBucket":
        return ObjectMissing(f"{uri}: there is no such bucket at {host}; check its name, or make it")
    if status == 404:
        return ObjectMissing(f"{uri}: there is no such object at {host}; check bucket, prefix and AWS_ENDPOINT_URL")
    if code in _REGION or status in (301, 307):
        return StoreError(f"{uri}: the bucket is in another region ({said}); set AWS_DEFAULT_REGION to its own")
    if code in _BUSY or status == 429 or status >= 500:
        return StoreUnavailable(f"{uri}: {said} to every one of several tries; it is overloaded, try again later")
    if status in (401, 403) or code in _EXPIRED:
        return ObjectDenied(
            f"{uri}: access denied ({said}); the credentials need s3:ListBucket, s3:GetObject and s3:PutObject there. "
            "Check AWS_ACCESS_KEY_ID or AWS_PROFILE, and the clock"
        )
    if status == PRECONDITION_FAILED:
        return ObjectChanged(f"{uri}: it became another object while it was read ({said}); try again")
    if status == CONFLICT:
        return ObjectExists(f"{uri}: another writer is creating it at the same time ({said})")
    return StoreError(f"{uri}: the storage refused the request ({said})")
