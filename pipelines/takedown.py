"""The pipeline that works through takedown lists: ``python -m pipelines.takedown`` compiles it to
``pipelines/takedown.yaml``.

::

    plan ─> take_down, one a request ─> gather ─> compose ─> evaluate ─> register ─> gate ─> promote
    └───────────────────────── close: the exit handler, whatever happens ─────────────────────────┘
"""

import sys
from pathlib import Path
from typing import Any

from kfp import dsl

if not __package__:  # imported by its path alone, as `kfp dsl compile --py` does
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from components.close.component import close
from components.gather.component import gather
from components.plan.component import plan
from components.take_down.component import take_down
from pipelines.bundle import make_bundle
from pipelines.compiling import compile_pipeline
from pipelines.platform import AT_ONCE, PROFILES, Profile, erases_one, runs_once, talks_to_services


def takedown_pipeline(profile: Profile) -> Any:
    """The pipeline, with what ``profile`` says for the tasks that run the model."""

    # A pipeline of its own: tasks can wait for that, but not for a loop whose results nobody collects.
    @dsl.pipeline(name="erase-each", description="Erase each request for itself.")
    def erase_each(batch: str, requests: list):  # type: ignore[no-untyped-def]
        with dsl.ParallelFor(items=requests, parallelism=AT_ONCE) as request_id:
            erases_one(take_down(batch=batch, request_id=request_id), profile, 24 * 60)

    # And conditions on a pipeline's own parameters are all that KFP's local runner can look up.
    @dsl.pipeline(name="bundle-if-needed", description="Make the next bundle, measure and promote it.")
    def bundle_if_needed(needed: bool, order: str, policy: str, name: str, promote: bool):  # type: ignore[no-untyped-def]
        with dsl.If(needed == True, "needed"):  # noqa: E712 an expression of KFP, not of Python
            make_bundle(profile, order, policy, name, promote)

    @dsl.pipeline(
        name="spare-takedown",
        description="Work through takedown lists: erase each request, bundle, measure and promote, keep the ledger.",
    )
    def takedown(
        model: str,
        requested: str = "",
        skip_invalid: bool = False,
        retry_failed: bool = False,
        most: int = 0,
        deadlines: str = "",
        zone: str = "",
        candidates: dict = {},  # noqa: B006
        settings: dict = {},  # noqa: B006
        bundle_settings: dict = {},  # noqa: B006
        suite: str = "",
        seeds: int = 0,
        policy: str = "",
        bundle_policy: str = "",
        name: str = "",
        promote: bool = True,
        lease_minutes: float = 15.0,
    ):  # type: ignore[no-untyped-def]
        """Work through takedown lists.

        Args:
            model: 'canvas', a diffusers directory that every task can read, s3://bucket/prefix, or a hub id
            requested: a takedown list or a folder of lists, best s3://; empty to go on with what the ledger has
            skip_invalid: whether bad rows and contradictions are left out, and the rest is done
            retry_failed: whether requests are tried again that failed for a reason of their own
            most: how many requests this run erases at most; 0 for as many as a run holds, 300
            deadlines: YAML file of days by regime; empty for SPARE's own
            zone: of the lists' days and of times that name none, as in Europe/Berlin; empty for UTC
            candidates: by kind, what surrogates and neighbours are chosen from, as in {style: [Photo, Rust]}
            settings: settings of each request's own erasure by name, e.g. {"steps": 60}; the rest keep their defaults
            bundle_settings: settings of the bundle by name, e.g. {"rank": 64}
            suite: what is measured: canvas, unlearncanvas or the address of a YAML file; empty for Canvas's own
            seeds: how many of the suite's seeds are drawn; 0 for all
            policy: what the gate asks of each request's own adapter: 'default', 'lists' or the address of a YAML file;
                empty: what SPARE_POLICY names, else 'default'
            bundle_policy: what it asks of the bundle, if that is something else
            name: the bundle's registered model; empty for spare.<base>
            promote: whether the bundle becomes champion if the gate lets it pass
            lease_minutes: so long after its last sign of life a worker is given up
        """
        with dsl.ExitHandler(talks_to_services(close().set_display_name("close"))):
            planned = runs_once(plan(
                model=model, requested=requested, skip_invalid=skip_invalid, retry_failed=retry_failed, most=most,
                deadlines=deadlines, zone=zone, candidates=candidates, settings=settings,
                bundle_settings=bundle_settings, suite=suite, seeds=seeds, policy=policy,
                bundle_policy=bundle_policy, name=name, promote=promote, lease_minutes=lease_minutes,
            ))  # fmt: skip
            batch = planned.outputs["batch"]
            each = erase_each(batch=batch, requests=planned.outputs["requests"]).set_caching_options(False)
            gathered = talks_to_services(gather(batch=batch)).after(each)
            asked = {output: gathered.outputs[output] for output in ("needed", "order", "policy")}
            bundle_if_needed(**asked, name=name, promote=promote)

    return takedown


if __name__ == "__main__":
    compile_pipeline(takedown_pipeline, Path(__file__), __doc__)
elif not __package__:
    takedown = takedown_pipeline(PROFILES["gpu"])
