"""Whether a run may take what an earlier one has made: KFP gives a task's result again wherever its inputs are equal,
for ever, whatever has become of the files. So an order says what else it depends on: which code, and made when."""

from __future__ import annotations

import functools
import hashlib
import time
from pathlib import Path
from typing import Final

from spare_core.workflow.environment import whole_number

DAYS: Final = "SPARE_REUSE_DAYS"
"""How many days a run may take results of earlier ones, where a lifecycle rule deletes their files later than that;
without it, for ever."""
_DAY: Final = 24 * 60 * 60


@functools.cache
def code_digest() -> str:
    """sha256 of this package's source files: an image that is built anew under its old name takes no old results."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def reuse_period() -> str:
    """The number of the period of so many days that it is now; empty if results may be taken for ever.

    Periods follow one another from 1970-01-01 on, so a result is at most one of them old when it is taken.

    Raises:
        InputError: if the environment says no whole number of days.
    """
    days = whole_number(DAYS, 1, 3650, "of days from 1 to 3650")
    return str(int(time.time()) // _DAY // days) if days else ""
