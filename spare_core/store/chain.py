"""Numbered objects, each created conditionally and holding the sha256 of the one before: none can be changed, left out
or put in between without its being seen. What is cut off at the end shows only to whoever noted the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spare_core.errors import ObjectExists, ObjectMissing, SpareError
from spare_core.store.base import Store

NOTHING: Final = "0" * 64
"""What the first entry names as the one before it."""


class Chain:
    """The entries of one log in a store, from number 1.

    Args:
        store: where they are.
        name: of the log, for messages: "the ledger".
        key: of the entry of a number.
        damaged: the error that says that an entry does not fit.
    """

    def __init__(self, store: Store, name: str, key: Callable[[int], str], damaged: type[SpareError]) -> None:
        self.store, self.key = store, key
        self._name, self._damaged = name, damaged

    def where(self, number: int, key: str = "") -> str:
        """An entry, for people; ``key`` is of what it was read from, if that is another object."""
        return f"entry {number} of {self._name} ({self.store.uri_of(key or self.key(number))})"

    def numbers(self, folder: str, first: int = 1) -> range:
        """The numbers of the entries in a folder that begins with entry ``first``.

        Raises:
            the error given: naming the first that is missing.
        """
        keys = self.store.list(folder)
        for number, key in enumerate(keys, first):
            if key != self.key(number):
                raise self._damaged(f"{self.where(number)} is missing; the next there is {key.rpartition('/')[2]!r}")
        return range(first, first + len(keys))

    def read(self, number: int) -> bytes:
        """An entry that was listed.

        Raises:
            the error given: if it is gone.
        """
        try:
            return self.store.read(self.key(number))
        except ObjectMissing:
            raise self._damaged(f"{self.where(number)} is gone; it was deleted while the log was read") from None

    def create(self, number: int, content: bytes) -> bool:
        """Whether the entry is ours now. ``content`` holds something unique: equal bytes are those of an earlier try,
        whose answer was lost."""
        try:
            self.store.create(self.key(number), content)
        except ObjectExists:
            return self.read(number) == content
        return True

    def check_follows(self, number: int, previous: object, before: str, key: str = "") -> None:
        """Compare the sha256 that entry ``number`` names with that of the entry before it.

        Raises:
            the error given: naming both.
        """
        if previous != before:
            raise self._damaged(
                f"{self.where(number, key)} follows {str(previous)[:12]}…, but the entry before it is {before[:12]}…; "
                f"entry {number - 1} was changed, or one was removed or put in between"
            )
