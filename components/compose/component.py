"""The component that makes one adapter of many requests."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compose(order: str, adapter: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics]):
    """Erase all concepts of a bundle together, into one adapter: examples, masks, closed form and training.

    With SPARE_CHECKPOINTS set to a folder that outlives the pod, an interrupted one goes on where it was.

    Args:
        order: what was asked for, as the collect task returns it
        adapter: a plain LoRA that stock diffusers loads, with spare.json beside it
        metrics: residual and mean drift, steps and seconds
    """
    from pathlib import Path

    from spare_core.workflow import tasks

    manifest = tasks.compose_task(order, Path(adapter.path))
    adapter.metadata.update(tasks.metadata(manifest))
    for figure in ("residual", "mean_drift"):
        metrics.log_metric(figure, manifest[figure])
    metrics.log_metric("steps", manifest["training"]["steps"])
    metrics.log_metric("seconds", sum(manifest["seconds"].values()))
    tasks.write_metrics(metrics.path, metrics.metadata)
