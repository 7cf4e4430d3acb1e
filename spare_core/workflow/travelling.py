"""What people wrote, on its way from one task of a pipeline to another: it lies in the store, its key is what travels.

KFP hands a task its parameters within the container's command, in languages that others expand: the kubelet replaces
``$(NAME)`` by a variable of the environment, secrets among them, and ``$$`` by ``$``; KFP's launcher and local runner
replace ``{{$…}}``, Argo ``{{…}}``. A concept, an alias, a kept name of a list would be changed on the way, or would
tell a secret. A key is hexadecimal, is checked against what lies under it, and is short, however many names there are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from spare_core.errors import InputError, ObjectMissing
from spare_core.store import Store

_FOLDER: Final = "requests"
_KEY: Final = re.compile(rf"{_FOLDER}/(?P<sha256>[0-9a-f]{{64}})\.json")
EXPANDED: Final = ("$(", "$$", "{{", "}}")
"""What Kubernetes, KFP or Argo would replace, or end what they replace."""
_SHOWN: Final = 60


def send(store: Store, text: str) -> str:
    """Put a text into the store, for good; its key is for another task."""
    return store.put_content(text.encode(), _FOLDER, ".json")


def receive(store: Store, key: str) -> str:
    """The text that was sent under this key.

    Raises:
        InputError: if it is no such key, nothing lies there, or something else than was sent.
    """
    form = _KEY.fullmatch(key)
    if form is None:
        raise InputError(f"{key[:_SHOWN]!r} is nothing that a task sent; it must be {_FOLDER}/ and a sha256")
    try:
        content = store.read(key)
    except ObjectMissing:
        raise InputError(f"there is no {key} in the store; it was removed, or this task has another store") from None
    if hashlib.sha256(content).hexdigest() != form["sha256"]:
        raise InputError(f"{key} in the store is not what was sent; it was changed")
    return content.decode()


def expansion_problems(parameters: Mapping[str, Any]) -> list[str]:
    """Why parameters cannot be handed to a pipeline as they are: a problem for each that holds what others expand."""
    return [
        f"{name} holds {sign!r} in {text[:_SHOWN]!r}: Kubernetes, KFP or Argo would replace it on the way; leave it "
        "out, or ask by a takedown list, whose texts do not travel so"
        for name, value in parameters.items()
        for text in _texts(value)
        for sign in [next((one for one in EXPANDED if one in text), None)]
        if sign is not None
    ]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)
