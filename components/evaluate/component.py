"""The component that measures an adapter."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    order: str,
    adapter: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion_before: dsl.Output[dsl.ClassificationMetrics],
    confusion_after: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
):
    """Measure what was forgotten, what was kept, and the damage, on pictures drawn before and after.

    Args:
        order: what was asked for, as the run's first task returns it
        adapter: what the distill or compose task made
        evaluation: evaluation.json with contact sheet and plots
        metrics: UA, IRA, CRA and FID of the base and with the adapter, residual, mean drift
        confusion_before: what the judge names where each concept was prompted, with the base model
        confusion_after: the same with the adapter
        report: figures, contact sheet and every concept on one page
    """
    from pathlib import Path

    from spare_core.workflow import tasks

    found = tasks.evaluate_task(order, Path(adapter.path), Path(evaluation.path), Path(report.path))
    for name, value in tasks.figures(found).items():
        metrics.log_metric(name.replace("/", " "), value)
    for matrix, side in ((confusion_before, "base"), (confusion_after, "adapted")):
        matrix.log_confusion_matrix(found["confusion"]["labels"], found["confusion"][side])
        tasks.write_metrics(matrix.path, matrix.metadata)
    tasks.write_metrics(metrics.path, metrics.metadata)
