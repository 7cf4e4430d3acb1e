"""The exit handler of a batch: the component that closes the ledger."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def close(status: dsl.PipelineTaskFinalStatus):
    """Enter in the ledger what has come true, whatever happened, and record in MLflow how the run ended.

    Requests are done once the champion erases them, counter-notices once it does not. What this run was still at is
    free for the next one.

    Args:
        status: how the tasks before it ended, from KFP
    """
    from spare_core.takedown import tasks

    tasks.close_task(status.state, status.error_message or "")
