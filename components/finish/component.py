"""The exit handler: the component that records how a run ended."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(status: dsl.PipelineTaskFinalStatus):
    """Record in MLflow how a run ended, whatever happened: its state, and what went wrong in which stage.

    Stages that were killed and could not say so are found here.

    Args:
        status: how the tasks before it ended, from KFP
    """
    from spare_core.workflow import tasks

    tasks.finish_task(status.state, status.error_message or "")
