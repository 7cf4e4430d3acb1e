"""The pipeline that makes one adapter of many requests: ``python -m pipelines.bundle`` compiles it to
``pipelines/bundle.yaml``.

::

    collect ─> compose ─> evaluate ─> register ─> gate ─> promote
    └─────────── finish: the exit handler, whatever happens ────┘
"""

import sys
from pathlib import Path
from typing import Any

from kfp import dsl

if not __package__:  # imported by its path alone, as `kfp dsl compile --py` does
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from components.collect.component import collect
from components.compose.component import compose
from components.evaluate.component import evaluate
from components.finish.component import finish
from components.gate.component import gate
from components.promote.component import promote as promote_version
from components.register.component import register
from pipelines.compiling import compile_pipeline
from pipelines.platform import PROFILES, Profile, runs_once, runs_the_model, talks_to_services


def make_bundle(profile: Profile, order: Any, policy: Any, name: Any, promote: Any) -> None:
    """The tasks from an order to the champion; what they take are channels of KFP."""
    adapter = runs_the_model(compose(order=order), profile, 24 * 60).outputs["adapter"]
    evaluation = runs_the_model(evaluate(order=order, adapter=adapter), profile, 24 * 60).outputs["evaluation"]
    registered = talks_to_services(register(order=order, name=name, adapter=adapter, evaluation=evaluation), 60)
    version = {output: registered.outputs[output] for output in ("name", "version")}
    asked = {"order": order, "policy": policy, **version}
    judged = runs_once(gate(**asked))
    with dsl.If(promote == True, "promote"):  # noqa: E712 an expression of KFP, not of Python
        talks_to_services(promote_version(**asked)).after(judged)


def bundle_pipeline(profile: Profile) -> Any:
    """The pipeline, with what ``profile`` says for the tasks that run the model."""

    @dsl.pipeline(
        name="spare-bundle",
        description="Erase many concepts with one adapter, measure it against the one before, and promote it.",
    )
    def bundle(
        model: str,
        requests: list = [],  # noqa: B006
        without: list = [],  # noqa: B006
        grow: bool = True,
        settings: dict = {},  # noqa: B006
        suite: str = "",
        seeds: int = 0,
        policy: str = "",
        name: str = "",
        promote: bool = True,
        request_id: str = "",
    ):  # type: ignore[no-untyped-def]
        """Make one adapter of many requests.

        Args:
            model: 'canvas', a diffusers directory that every task can read, s3://bucket/prefix, or a hub id
            requests: what is to be erased: [{concept: Cat, surrogate: Dog}, ...], with kind, keep, template, contexts
            without: concepts that the champion erases and that are to be there again
            grow: whether all else that the champion erases stays erased; false for what requests name alone
            settings: settings of the erasure by name, e.g. {"rank": 64}; the rest keep their defaults
            suite: what is measured: canvas, unlearncanvas or the address of a YAML file; empty for Canvas's own
            seeds: how many of the suite's seeds are drawn; 0 for all
            policy: what the gate asks for: 'default', 'lists' or the address of a YAML file; empty: what SPARE_POLICY
                names, else 'default'
            name: registered model; empty for spare.<base>
            promote: whether the bundle becomes champion if the gate lets it pass
            request_id: groups the runs of one request; empty for one made of the parameters
        """
        with dsl.ExitHandler(talks_to_services(finish().set_display_name("finish"))):
            checked = runs_once(collect(
                model=model, requests=requests, without=without, grow=grow, settings=settings, suite=suite,
                seeds=seeds, policy=policy, name=name, promote=promote, request_id=request_id,
            ))  # fmt: skip
            make_bundle(profile, checked.outputs["order"], checked.outputs["policy"], name, promote)

    return bundle


if __name__ == "__main__":
    compile_pipeline(bundle_pipeline, Path(__file__), __doc__)
elif not __package__:
    bundle = bundle_pipeline(PROFILES["gpu"])
