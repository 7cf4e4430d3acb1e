"""The component that collects what a bundle erases."""

from typing import NamedTuple

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def collect(
    model: str,
    requests: list,
    without: list,
    grow: bool,
    settings: dict,
    suite: str,
    seeds: int,
    policy: str,
    name: str,
    promote: bool,
    request_id: str,
) -> NamedTuple("Checked", [("order", str), ("policy", str)]):
    """Check every parameter of a bundle's run before a GPU is asked for, and say all that is wrong at once.

    Reads from the registry what the champion erases, which stays erased unless it is withdrawn, and remembers which
    champion that was: a bundle that was made from an older one is not promoted. Needs a CPU, MLflow, and access to the
    model.

    Args:
        model: 'canvas', a diffusers directory, s3://bucket/prefix, or a hub id
        requests: what is to be erased, a mapping each with concept, surrogate and, as needed, kind, keep, template and
            contexts
        without: concepts that the champion erases and the bundle is not to
        grow: whether all else that the champion erases stays erased
        settings: settings of the erasure by name
        suite: canvas, unlearncanvas or the address of a YAML file
        seeds: how many of the suite's seeds are drawn; 0 for all
        policy: 'default', 'lists' or the address of a YAML file; empty: what SPARE_POLICY names, else 'default'
        name: registered model; empty for spare.<base>
        promote: whether the bundle becomes champion if the gate lets it pass
        request_id: groups the runs of one request; empty for one made of the parameters

    Returns:
        order: what the later tasks work on: its key in the store
        policy: what the gate asks for: its key in the store
    """
    from spare_core.workflow import tasks

    return tuple(tasks.collect_task(dict(
        model=model, requests=requests, without=without, grow=grow, settings=settings, suite=suite, seeds=seeds,
        policy=policy, name=name, promote=promote, request_id=request_id,
    )))  # fmt: skip
