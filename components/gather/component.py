"""The component that gathers what the next bundle erases."""

from typing import NamedTuple

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather(batch: str) -> NamedTuple("Gathered", [("order", str), ("policy", str), ("needed", bool)]):
    """Compare what the ledger asks for with what the champion erases, and order the bundle that makes up for it.

    Registered requests join it, withdrawn ones leave it, all else that the champion erases stays. While another run
    makes a bundle, and where nothing has changed, none is ordered.

    Args:
        batch: what the plan task returns

    Returns:
        order: what the later tasks work on: its key in the store
        policy: what the gate asks for: its key in the store
        needed: whether there is a bundle to make
    """
    from spare_core.takedown import tasks

    return tuple(tasks.gather_task(batch))
