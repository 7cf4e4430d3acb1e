"""The component that trains the adapter."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def distill(
    order: str,
    examples: dsl.Input[dsl.Dataset],
    profile: dsl.Input[dsl.Artifact],
    masks: dsl.Input[dsl.Artifact],
    adapter: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train the masked low-rank adapter by self-distillation and write its directory.

    Losses, residual and drift go to MLflow while it trains. With SPARE_CHECKPOINTS set to a folder that outlives the
    pod, an interrupted training goes on where it was last measured.

    Args:
        order: what was asked for, as the validate task returns it
        examples: what the prepare task drew
        profile: what the timesteps task found
        masks: what the saliency task chose
        adapter: a plain LoRA that stock diffusers loads, with spare.json beside it
        metrics: residual, mean drift, steps and seconds
    """
    from pathlib import Path

    from spare_core.workflow import tasks

    folders = (Path(folder.path) for folder in (examples, profile, masks, adapter))
    manifest = tasks.distill_task(order, *folders)
    adapter.metadata.update(tasks.metadata(manifest))
    for figure in ("residual", "mean_drift"):
        metrics.log_metric(figure, manifest[figure])
    metrics.log_metric("steps", manifest["training"]["steps"])
    metrics.log_metric("seconds", manifest["seconds"]["distill"])
    tasks.write_metrics(metrics.path, metrics.metadata)
