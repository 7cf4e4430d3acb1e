"""Files that a person names: on this machine as they are, in an object storage fetched first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spare_core.errors import InputError, SettingsError
from spare_core.files.addresses import is_s3
from spare_core.files.strict_yaml import read_yaml_text
from spare_core.store.base import OnBytes, no_progress
from spare_core.store.cache import Narrow, fetch


def local_path(
    source: str | Path,
    wanted: Sequence[str] = (),
    on_progress: OnBytes = no_progress,
    narrow: Narrow | None = None,
) -> Path:
    """The local path of ``source``: a path as it is, whether or not something is there; the cached copy of an ``s3://``
    address.

    Args:
        source: a path, or the address of a folder or an object.
        wanted: of a folder in S3, fetch only the names that match one of these patterns.
        narrow: and of these only the ones that it returns.
        on_progress: called with the bytes fetched and the bytes there are.

    Raises:
        StoreError: if it cannot be fetched.
        InputError: if the address is malformed.
    """
    if is_s3(source):
        return fetch(str(source), on_progress, wanted, narrow)
    if str(source).startswith("s3:/"):
        raise InputError(f"{str(source)!r} is neither a path nor an address; write s3://bucket/prefix")
    return Path(source)


def read_yaml(source: str | Path) -> Any:
    """The content of a YAML file, here or in S3.

    Raises:
        SettingsError: if the file cannot be read.
        StoreError: if it cannot be fetched.
    """
    path = local_path(source)
    try:
        return read_yaml_text(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError([f"cannot read {source}: {error}"]) from None


def read_yaml_mapping(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, here or in S3; an empty file is an empty one.

    Raises:
        SettingsError: if the file cannot be read or holds something else.
        StoreError: if it cannot be fetched.
    """
    values = read_yaml(source)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError([f"{source} must hold a mapping of names to values, got {type(values).__name__}"])
    if not all(isinstance(key, str) for key in values):
        raise SettingsError(
            [f"{source} must name every value with text, got {[k for k in values if type(k) is not str]}"]
        )
    return values
