"""The component that checks all parameters of a run."""

from typing import NamedTuple

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(
    model: str,
    erase: str,
    surrogate: str,
    kind: str,
    keep: list,
    images: str,
    template: str,
    contexts: list,
    settings: dict,
    suite: str,
    seeds: int,
    policy: str,
    name: str,
    promote: bool,
    request_id: str,
) -> NamedTuple("Checked", [("order", str), ("policy", str)]):
    """Check every parameter of a run before a GPU is asked for, and say all that is wrong at once.

    Finds the base model and the pictures and names them by digest, so that later tasks can tell whether they still are
    what was asked for. Needs a CPU, MLflow, and access to the model.

    Args:
        model: 'canvas', a diffusers directory, s3://bucket/prefix, or a hub id
        erase: the concept to erase, as people write it
        surrogate: what it becomes
        kind: style, object or person; Canvas finds it itself
        keep: concepts to hold fixed by name; empty for the model's own list
        images: folder or s3:// address of pictures of the concept; empty to let the model draw them
        template: prompt with {concept} and {context}; empty for the kind's own
        contexts: what fills {context}; empty for the kind's own
        settings: settings of the erasure by name
        suite: canvas, unlearncanvas or the address of a YAML file
        seeds: how many of the suite's seeds are drawn; 0 for all
        policy: 'default', 'lists' or the address of a YAML file; empty: what SPARE_POLICY names, else 'default'
        name: registered model; empty for spare.<base>.<concept>
        promote: whether the adapter becomes champion if the gate lets it pass
        request_id: groups the runs of one request; empty for one made of the parameters

    Returns:
        order: what the later tasks work on: its key in the store
        policy: what the gate asks for: its key in the store
    """
    from spare_core.workflow import tasks

    return tuple(tasks.validate_task(dict(
        model=model, erase=erase, surrogate=surrogate, kind=kind, keep=keep, images=images, template=template,
        contexts=contexts, settings=settings, suite=suite, seeds=seeds, policy=policy, name=name, promote=promote,
        request_id=request_id,
    )))  # fmt: skip
