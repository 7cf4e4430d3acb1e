"""Takedown lists: what is asked for, by whom and until when, and what became of it.

``request`` is what a list says, ``reading`` reads lists, ``conflicts`` finds what cannot go together. ``ledger`` keeps
what became of each, ``standings`` says what is asked for together, ``planning`` what would be done. ``work`` and
``bundling`` do it as far as the ledger goes, under ``leases``; ``erasing`` asks the model, and ``tasks`` is what a
pipeline's tasks call. Importing the package has every task keep the leases of the requests that it works for, and
enter a refusal of the gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spare_core.workflow.keeping import KEEPERS

if TYPE_CHECKING:
    from spare_core.workflow.order import Order


@contextmanager
def keep_leases(order: Order) -> Iterator[None]:
    """Renew the leases of the requests that ``order`` was made for while a task works on it, and enter for which of
    them the gate refuses it, if it does."""
    if not order.held:
        yield
        return
    from spare_core.errors import GateRefused
    from spare_core.takedown.bundling import refuse
    from spare_core.takedown.leases import check_clock, renewed
    from spare_core.takedown.ledger import Ledger
    from spare_core.workflow.environment import open_run_store, pipeline_run_id, run_actor

    run_id = pipeline_run_id()
    store = open_run_store()
    check_clock(store, order.lease_minutes)
    ledger = Ledger(store, run_actor())
    try:
        with renewed(ledger, order.held, run_id, order.lease_minutes):
            yield
    except GateRefused as error:
        refuse(ledger, run_id, error)
        raise


KEEPERS.append(keep_leases)
