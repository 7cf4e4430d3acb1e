"""Every task of a pipeline begins by finding its services there, and waits for them as long as the environment says.

On a cluster MLflow is redeployed and S3 has its moments. Whether KFP tries a failed task again depends on how it was
installed (k8s/README.md), so what only waiting mends is waited for here.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from spare_core.errors import RegistryUnavailable, StoreUnavailable
from spare_core.registry.client import check_server
from spare_core.workflow.environment import STORE, open_run_store, whole_number
from spare_core.workflow.events import reported
from spare_core.workflow.secrets import read_secrets

WAIT: Final = "SPARE_WAIT_SECONDS"
"""How long a task waits for MLflow and the store before it fails; without it, not at all."""
_PAUSES: Final = (1.0, 2.0, 4.0, 8.0)
"""Seconds between two looks; the last one again and again."""


@contextmanager
def task_of(stage: str) -> Iterator[dict[str, Any]]:
    """A stage that is reported, and begins when its services are there.

    Raises:
        InputError, RegistryError, StoreError: see :func:`await_services`.
    """
    with reported(stage) as results:
        await_services()
        yield results


def await_services() -> None:
    """With the keys that are mounted, until MLflow and, where one is set, the store answer.

    Raises:
        InputError: if the environment says no number of seconds, or a key cannot be read.
        RegistryUnavailable, StoreUnavailable: if one of them did not, for so long.
        RegistryError, StoreError: at once, if one refuses, or is something else.
    """
    read_secrets()
    patience = whole_number(WAIT, 0, 24 * 60 * 60, "of seconds, at most a day") or 0
    deadline = time.monotonic() + patience
    for look in itertools.count():
        try:
            check_server()
            if os.environ.get(STORE):
                open_run_store().check()
            return
        except (RegistryUnavailable, StoreUnavailable) as error:
            pause = min(_PAUSES[min(look, len(_PAUSES) - 1)], deadline - time.monotonic())
            if pause <= 0:
                raise
            if look == 0:
                print(f"waiting for up to {patience:g} s: {error}", flush=True)
            time.sleep(pause)
