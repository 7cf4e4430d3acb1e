"""Models on the hub: what people write for them, and what is fetched of one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from spare_core.errors import ModelError
from spare_core.models.digest import wanted_of_hub

_ID: Final = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_HOST: Final = r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)"
_PAGE: Final = re.compile(rf"{_HOST}(?:/tree/(?P<revision>[\w./-]+?))?/?(?:[?#].*)?")
_FILE: Final = re.compile(
    rf"{_HOST}/(?:blob|resolve)/(?P<revision>[\w.-]+)/(?P<file>[\w./ -]+\.safetensors)(?:[?#].*)?"
)


class HubModel(NamedTuple):
    """A model on the hub, at a revision or the latest; ``file``, if it is one file there."""

    name: str
    revision: str | None
    file: str | None = None

    def __str__(self) -> str:
        at = self.name if self.revision is None else f"{self.name}@{self.revision}"
        return at if self.file is None else f"{at}: {self.file}"


def hub_model(source: str) -> HubModel | None:
    """What ``source`` names on the hub: ``org/name``, ``org/name@revision``, the address of its page or that of a file
    there; None if it is a path here, or can be nothing there."""
    if found := _FILE.fullmatch(source):
        return HubModel(found["name"], found["revision"], found["file"])
    found = _PAGE.fullmatch(source) or (None if is_here(source) else _ID.fullmatch(source))
    return HubModel(found["name"], found["revision"]) if found else None


def is_here(source: str) -> bool:
    """Whether ``source`` is a path on this machine.

    Raises:
        ModelError: if it can be no path at all.
    """
    try:
        return Path(source).expanduser().exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"model {source[:60]!r} is no usable path: {reason}") from None


def download(hub: HubModel) -> tuple[Path, str | None]:
    """The folder or file of a model, fetched if it is not in the hub's cache, and the commit that it is of, where the
    cache says so.

    Raises:
        ModelError: if it cannot be had.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if hub.file is not None:
            path = Path(hf_hub_download(hub.name, hub.file, revision=hub.revision))
        else:
            wanted = wanted_of_hub(hub.name, hub.revision)
            path = Path(snapshot_download(hub.name, revision=hub.revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{str(hub)!r} is no local directory, and the hub did not give it ({reason}); check the name, the network "
            "and the HF_TOKEN environment variable"
        ) from None
    places = path.parts
    commit = places[places.index("snapshots") + 1] if "snapshots" in places[:-1] else None
    return path, commit
