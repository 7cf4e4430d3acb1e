"""The process that works on one request: ``python -m spare_core.takedown.alone BATCH REQUEST_ID``, in the environment
of the task that waits for it (:mod:`spare_core.takedown.apart`)."""

from __future__ import annotations

import sys
from functools import partial

from spare_core.takedown import work
from spare_core.takedown.erasing import erase_request
from spare_core.takedown.ledger import Ledger
from spare_core.takedown.parameters import Batch
from spare_core.takedown.standings import unwanted
from spare_core.workflow.environment import open_run_store, pipeline_run_id, run_actor
from spare_core.workflow.travelling import receive


def main() -> None:
    """Erase the request; what goes wrong with it is entered in the ledger."""
    batch, request_id = sys.argv[1:]
    store = open_run_store()
    asked, ledger = Batch.from_json(receive(store, batch)), Ledger(store, run_actor())
    erase = partial(erase_request, asked, unwanted=unwanted(ledger))
    work.take_down(ledger, request_id, pipeline_run_id(), asked.lease_minutes, erase)


if __name__ == "__main__":
    main()
