"""The component that moves the champion."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(order: str, policy: str, name: str, version: int) -> dict:
    """Make a version that the gate let pass champion; the one until now becomes previous.

    The move is written to the promotion log, in the store that SPARE_STORE names, before and after it is made. A move
    that was interrupted is finished by the next one. A bundle that was made from an older champion is refused.

    Args:
        order: what was asked for, as the run's first task returns it
        policy: what the gate asks for, as the run's first task returns it; it is asked again
        name: of the registered model
        version: its number

    Returns:
        Versions that champion and previous point to.
    """
    from spare_core.workflow import tasks

    return tasks.promote_task(order, policy, name, version)
