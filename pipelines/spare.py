"""The pipeline that erases one concept: ``python -m pipelines.spare`` compiles it to ``pipelines/spare.yaml``.

::

    validate ─> prepare ─> timesteps ─> saliency ─> distill ─> evaluate ─> register ─> gate ─> promote
    └────────────────────────── finish: the exit handler, whatever happens ──────────────────────────┘
"""

import sys
from pathlib import Path
from typing import Any

from kfp import dsl

if not __package__:  # imported by its path alone, as `kfp dsl compile --py` does
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from components.distill.component import distill
from components.evaluate.component import evaluate
from components.finish.component import finish
from components.gate.component import gate
from components.prepare.component import prepare
from components.promote.component import promote as promote_version
from components.register.component import register
from components.saliency.component import saliency
from components.timesteps.component import timesteps
from components.validate.component import validate
from pipelines.compiling import compile_pipeline
from pipelines.platform import PROFILES, Profile, runs_once, runs_the_model, talks_to_services


def spare_pipeline(profile: Profile) -> Any:
    """The pipeline, with what ``profile`` says for the tasks that run the model."""

    @dsl.pipeline(
        name="spare",
        description="Erase one concept from a text-to-image diffusion model, measure it, and promote the adapter.",
    )
    def spare(
        model: str,
        erase: str,
        surrogate: str,
        kind: str = "",
        keep: list = [],  # noqa: B006
        images: str = "",
        template: str = "",
        contexts: list = [],  # noqa: B006
        settings: dict = {},  # noqa: B006
        suite: str = "",
        seeds: int = 0,
        policy: str = "",
        name: str = "",
        promote: bool = True,
        request_id: str = "",
    ):  # type: ignore[no-untyped-def]
        """Erase one concept.

        Args:
            model: 'canvas', a diffusers directory that every task can read, s3://bucket/prefix, or a hub id
            erase: the concept to erase, as people write it, e.g. Neon Lines
            surrogate: what it becomes, e.g. Photo
            kind: style, object or person; Canvas finds it itself
            keep: concepts to hold fixed by name; empty for the model's or the kind's own list
            images: folder or s3:// address of pictures of the concept; empty to let the model draw them
            template: prompt with {concept} and {context}; empty for the kind's own
            contexts: what fills {context}; empty for the kind's own
            settings: settings of the erasure by name, e.g. {"steps": 60}; the rest keep their defaults
            suite: what is measured: canvas, unlearncanvas or the address of a YAML file; empty for Canvas's own
            seeds: how many of the suite's seeds are drawn; 0 for all
            policy: what the gate asks for: 'default', 'lists' or the address of a YAML file; empty: what SPARE_POLICY
                names, else 'default'
            name: registered model; empty for spare.<base>.<concept>
            promote: whether the adapter becomes champion if the gate lets it pass
            request_id: groups the runs of one request; empty for one made of the parameters
        """
        with dsl.ExitHandler(talks_to_services(finish().set_display_name("finish"))):
            checked = runs_once(validate(
                model=model, erase=erase, surrogate=surrogate, kind=kind, keep=keep, images=images, template=template,
                contexts=contexts, settings=settings, suite=suite, seeds=seeds, policy=policy, name=name,
                promote=promote, request_id=request_id,
            ))  # fmt: skip
            order = checked.outputs["order"]
            drawn = runs_the_model(prepare(order=order), profile, 12 * 60)
            examples = drawn.outputs["examples"]
            profiled = runs_the_model(timesteps(order=order, examples=examples), profile, 2 * 60)
            when = profiled.outputs["profile"]
            scored = runs_the_model(saliency(order=order, examples=examples, profile=when), profile, 4 * 60)
            masks = scored.outputs["masks"]
            trained = runs_the_model(
                distill(order=order, examples=examples, profile=when, masks=masks), profile, 24 * 60
            )
            adapter = trained.outputs["adapter"]
            measured = runs_the_model(evaluate(order=order, adapter=adapter), profile, 24 * 60)
            evaluation = measured.outputs["evaluation"]
            registered = talks_to_services(register(order=order, name=name, adapter=adapter, evaluation=evaluation), 60)
            version = {output: registered.outputs[output] for output in ("name", "version")}
            asked = {"order": order, "policy": checked.outputs["policy"], **version}
            judged = runs_once(gate(**asked))
            with dsl.If(promote == True, "promote"):  # noqa: E712 an expression of KFP, not of Python
                talks_to_services(promote_version(**asked)).after(judged)

    return spare


if __name__ == "__main__":
    compile_pipeline(spare_pipeline, Path(__file__), __doc__)
elif not __package__:
    spare = spare_pipeline(PROFILES["gpu"])
