"""A batch whose storage fails in the middle: it goes on, or it fails cleanly and the next run finishes it."""

from __future__ import annotations

from typing import Any

import pytest

from spare_core.errors import StoreUnavailable
from spare_core.store import Store, open_store
from tests.support import takedown_stub as stub
from tests.support.faulty_proxy import FaultyProxy
from tests.takedown.test_work import check_all_done, history

COUNT = 5
LEASE = 1.0
"""Minutes: what is tried again over the network takes longer than the stub's own lease."""


@pytest.fixture
def store(bucket: str, proxy: FaultyProxy) -> Store:
    """Behind the proxy."""
    return open_store(f"s3://{bucket}/env")


@pytest.mark.parametrize(
    "fault",
    [
        {"lose_answer": True, "times": 1, "skip": 4},
        {"status": 503, "code": "SlowDown", "times": 1},
        {"cut_request": 20, "times": 1, "skip": 3},
    ],
    ids=["answers are lost", "busy", "requests are cut"],
)
def test_what_passes_is_survived_and_nothing_is_entered_twice(
    store: Store, proxy: FaultyProxy, fault: dict[str, Any]
) -> None:
    proxy.inject(method="PUT", path="ledger/entries", **fault)
    stub.run(store, "run-1", stub.requests_of(range(1, COUNT + 1)), LEASE)
    assert proxy.faults[0].times == 0, "the fault happened"
    check_all_done(store, COUNT)
    for one in stub.requests_of(range(1, COUNT + 1)):
        assert history(store, one.request_id).count("registered") == 1
        assert history(store, one.request_id).count("done") == 1


@pytest.mark.parametrize("skip", [1, 9, 23, 24], ids=["planning", "erasing", "bundling", "closing"])
def test_an_outage_ends_the_run_and_the_next_one_finishes_it(store: Store, proxy: FaultyProxy, skip: int) -> None:
    proxy.inject(method="PUT", path="", status=500, code="InternalError", times=10_000, skip=skip)
    requests = stub.requests_of(range(1, COUNT + 1))
    with pytest.raises(StoreUnavailable):
        stub.run(store, "run-1", requests, LEASE)
    proxy.faults.clear()
    stub.run(store, "run-1", requests, LEASE)  # the same pipeline run, tried again
    stub.run(store, "run-2", requests, LEASE)
    check_all_done(store, COUNT)
