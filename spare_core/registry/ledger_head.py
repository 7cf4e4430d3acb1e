"""What MLflow remembers of a takedown ledger: its last entry, so that cutting entries off at the end is seen too.

A tag of the experiment, one for each model that has a ledger. It may lag behind: what it names must be there, and as it
was, however much came after it.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from spare_core.registry.client import asking, connect, overwrite
from spare_core.registry.naming import check_name
from spare_core.registry.tracking import EXPERIMENT

_TAG: Final = "spare.ledger.head."


def remember_head(bundle: str, number: int, sha256: str) -> None:
    """Note the last entry of the ledger about the registered model ``bundle``.

    Raises:
        RegistryError: if MLflow does not take it.
    """
    client = connect()
    with asking("find the experiment"):
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None and number:
        tag = partial(
            client.set_experiment_tag, experiment.experiment_id, f"{_TAG}{check_name(bundle)}", f"{number}:{sha256}"
        )
        overwrite("remember the ledger's head", tag)


def remembered_head(bundle: str) -> tuple[int, str] | None:
    """Number and sha256 of the entry that was noted last; None if none ever was.

    Raises:
        RegistryError: if MLflow cannot be asked.
    """
    with asking("find the experiment"):
        experiment = connect().get_experiment_by_name(EXPERIMENT)
    number, _, sha256 = (experiment.tags if experiment else {}).get(f"{_TAG}{check_name(bundle)}", "").partition(":")
    return (int(number), sha256) if number.isdecimal() else None
