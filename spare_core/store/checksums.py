"""Whether bytes are those that the storage says an object has."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

SHA256: Final = "spare-sha256"
"""The metadata in which our own uploads keep the whole content's sha256: S3's checksum of a multipart upload is one of
its parts only."""
_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')
_BLOCK: Final = 2**20


def verdict(answer: Mapping[str, Any], content: bytes | Path) -> bool | None:
    """Whether ``content`` is what ``answer`` (of a GET or a HEAD) describes; None if it names no usable checksum."""
    for algorithm, expected in _named(answer):
        return _digest(algorithm, content) == expected
    return None


def _named(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The checksums of the whole content, as (algorithm, hexadecimal), best first."""
    ours = answer.get("Metadata", {}).get(SHA256)
    if ours:
        yield "sha256", ours
    if answer.get("ChecksumType") != "COMPOSITE":
        for algorithm in ("sha256", "sha1", "crc32"):
            given = answer.get(f"Checksum{algorithm.upper()}", "")
            if given and "-" not in given:  # "…-3" is a checksum over three parts' checksums
                yield algorithm, base64.b64decode(given).hex()
    md5 = _MD5.fullmatch(answer.get("ETag", ""))
    encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:") or "SSECustomerAlgorithm" in answer
    if md5 and not encrypted:
        yield "md5", md5[1]


def _digest(algorithm: str, content: bytes | Path) -> str:
    if algorithm == "crc32":
        checksum = 0
        for block in _blocks(content):
            checksum = zlib.crc32(block, checksum)
        return f"{checksum:08x}"
    hasher = _HASHERS[algorithm]()
    for block in _blocks(content):
        hasher.update(block)
    return str(hasher.hexdigest())


def _blocks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


_HASHERS: Final[dict[str, Callable[[], Any]]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
}
