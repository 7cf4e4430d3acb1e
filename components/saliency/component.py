"""The component that chooses which weights may move."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def saliency(
    order: str,
    examples: dsl.Input[dsl.Dataset],
    profile: dsl.Input[dsl.Artifact],
    masks: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Score every target weight by its gradient for the concept and choose those that may move.

    Args:
        order: what was asked for, as the validate task returns it
        examples: what the prepare task drew
        profile: what the timesteps task found
        masks: rows and columns, or single weights, of each layer, as safetensors
        metrics: how many weights may move, and in how many layers
    """
    from pathlib import Path

    from spare_core.workflow import tasks

    facts = tasks.saliency_task(order, Path(examples.path), Path(profile.path), Path(masks.path))
    masks.metadata.update(tasks.metadata(facts))
    for figure in ("layers", "layers_touched", "weights", "moving", "density"):
        metrics.log_metric(figure, facts["mask"][figure])
    tasks.write_metrics(metrics.path, metrics.metadata)
