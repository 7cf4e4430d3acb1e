"""The component that erases one request of a takedown list."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def take_down(batch: str, request_id: str) -> str:
    """Erase one request, measure and judge its adapter, and register it with its evidence.

    What goes wrong with the request is entered in the ledger, and the task succeeds: the others go on. Another worker's
    request is left alone; one whose worker has died is taken over. With SPARE_CHECKPOINTS set to a folder that outlives
    the pod, an interrupted training goes on where it was.

    Args:
        batch: what the plan task returns
        request_id: names the request

    Returns:
        The state of the request: registered, failed, or whatever another worker made of it.
    """
    from spare_core.takedown import tasks

    return tasks.take_down_task(batch, request_id)
