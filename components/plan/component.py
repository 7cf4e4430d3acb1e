"""The component that takes takedown lists in and says what has to be erased."""

from typing import NamedTuple

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(
    model: str,
    requested: str,
    skip_invalid: bool,
    retry_failed: bool,
    most: int,
    deadlines: str,
    zone: str,
    candidates: dict,
    settings: dict,
    bundle_settings: dict,
    suite: str,
    seeds: int,
    policy: str,
    bundle_policy: str,
    name: str,
    promote: bool,
    lease_minutes: float,
) -> NamedTuple("Planned", [("batch", str), ("requests", list)]):
    """Check every parameter and every row of the lists, enter the new requests into the ledger, and plan what is open.

    Nothing is entered if a row is bad or two requests contradict each other, unless those are to be left out. Needs a
    CPU, MLflow, the store that SPARE_STORE names, and access to the model.

    Args:
        model: 'canvas', a diffusers directory, s3://bucket/prefix, or a hub id
        requested: a takedown list or a folder of lists; empty to go on with what the ledger has
        skip_invalid: whether bad rows and contradictions are left out, and the rest is done
        retry_failed: whether requests are tried again that failed for a reason of their own
        most: how many requests this run erases at most; 0 for as many as a run holds, 300
        deadlines: YAML file of days by regime; empty for SPARE's own
        zone: of the lists' days and of times that name none; empty for UTC
        candidates: by kind, what surrogates and neighbours are chosen from
        settings: settings of each request's own erasure by name
        bundle_settings: settings of the bundle by name
        suite: canvas, unlearncanvas or the address of a YAML file
        seeds: how many of the suite's seeds are drawn; 0 for all
        policy: 'default', 'lists' or the address of a YAML file, for each request's own adapter; empty: what
            SPARE_POLICY names, else 'default'
        bundle_policy: the same for the bundle; empty: policy
        name: the bundle's registered model; empty for spare.<base>
        promote: whether the bundle becomes champion if the gate lets it pass
        lease_minutes: so long after its last sign of life a worker is given up

    Returns:
        batch: what the later tasks work on: its key in the store
        requests: ids of the requests to erase, the first due first
    """
    from spare_core.takedown import tasks

    return tuple(tasks.plan_task(dict(
        model=model, requested=requested, skip_invalid=skip_invalid, retry_failed=retry_failed, most=most,
        deadlines=deadlines, zone=zone, candidates=candidates, settings=settings, bundle_settings=bundle_settings,
        suite=suite, seeds=seeds, policy=policy, bundle_policy=bundle_policy, name=name, promote=promote,
        lease_minutes=lease_minutes,
    )))  # fmt: skip
