"""The component that registers an adapter in MLflow."""

from typing import NamedTuple

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(order: str, name: str, adapter: dsl.Input[dsl.Model], evaluation: dsl.Input[dsl.Artifact]) -> NamedTuple(
    "Registered", [("name", str), ("version", int)]
):
    """Register the adapter with its evidence as a model version in MLflow; the alias candidate points to it.

    Adapter, evaluation and pictures are also kept by their digest in the store that SPARE_STORE names, where the gate
    reads them.

    Run again for the same request and adapter, it finds the version that is there.

    Args:
        order: what was asked for, as the run's first task returns it
        name: registered model; empty for spare.<base>.<concept>, of a bundle spare.<base>
        adapter: what the distill or compose task made
        evaluation: what the evaluate task measured

    Returns:
        name: of the registered model
        version: its number
    """
    from pathlib import Path

    from spare_core.workflow import tasks

    return tuple(tasks.register_task(order, name, Path(adapter.path), Path(evaluation.path)))
