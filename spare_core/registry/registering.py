"""From an adapter directory to a version in the registry: one version an adapter and request.

MLflow creates neither logged models nor versions conditionally. So both carry a tag made of request and adapter, and
the one that is there is used: of several that raced, the oldest stays. A version is created with all its tags in one
call; killed before, a try leaves no version at all, and the next one goes on with what it finds.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spare_core.adapters.directory import StoredAdapter, load_adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.names import normalise
from spare_core.errors import RegistryError, RegistryInputError
from spare_core.evaluation.report_files import EVALUATION, read_report
from spare_core.registry.client import asking, overwrite
from spare_core.registry.evidence import FILES, keep_evidence
from spare_core.registry.models import (
    ADAPTER,
    BUNDLE,
    CANDIDATE,
    EVIDENCE,
    GATE,
    GATE_VERDICT,
    REGISTRATION,
    RegisteredVersion,
    checked,
    cut_tag,
    get_version,
    set_tags,
)
from spare_core.registry.naming import bundle_name, check_name, model_name
from spare_core.registry.packaging import check_lora, package
from spare_core.registry.tracking import REQUEST, StageRun, sha256_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from spare_core.store import Store

_CONCEPT_KEY: Final = "spare.concept_key"


def register(
    run: StageRun, store: Store, adapter_folder: Path, evaluation_folder: Path | None = None, name: str = ""
) -> RegisteredVersion:
    """Register an adapter with its evidence, or return the version that this request registered it as before.

    ``name`` of the registered model follows from base and concept, or for a bundle from the base alone, unless it is
    given. Adapter, report and pictures also become artifacts of ``run``, and of the ``store``, where the gate reads
    them. Measured anew, a version is what the newer evaluation says. The alias ``candidate`` points to the version
    afterwards.

    Raises:
        AdapterError: if it is no adapter, or was changed since it was written.
        RegistryInputError: if it has a weight mask, or the evaluation is none of this adapter on its base.
        ModelError: if a local base model cannot be packed along (:func:`spare_core.registry.packaging.package`).
        RegistryError: if MLflow does not take it.
        StoreError: if the store does not.
    """
    stored = load_adapter(adapter_folder)
    check_lora(stored)
    evaluation = {} if evaluation_folder is None else _read_evaluation(evaluation_folder, stored)
    erasures, base = Erasures.of(stored.manifest), stored.manifest["base"].get("source")
    if not isinstance(base, str):
        raise RegistryInputError(f"{adapter_folder} does not say where its base model is; erase again")
    if not name:
        given = bundle_name(base, stored.base_digest)
        name = given if erasures.bundle else model_name(base, stored.base_digest, erasures.title)
    check_name(name)
    registration = sha256_of(run.request_id, stored.sha256)
    evidence = keep_evidence(store, run.request_id, stored, evaluation_folder)
    tags = {**_tags(run, stored, evaluation, registration), EVIDENCE: evidence}
    _registered_model(run.client, name, BUNDLE if erasures.bundle else erasures.title)
    found = _registered(run.client, name, registration)
    if found is None:
        run.artifact(stored.folder, "adapter")
        if evaluation_folder is not None:
            for file in FILES:
                if (evaluation_folder / file).is_file():
                    run.artifact(evaluation_folder / file, "evaluation")
        model_id = _logged_model(run, stored, name, registration)
        found = dataclasses.replace(_create_version(run, name, model_id, tags), created=True)
    elif found.tags.get(EVIDENCE) != evidence:
        found = _measured_anew(run.client, found, tags)
    point = partial(run.client.set_registered_model_alias, name, CANDIDATE, str(found.version))
    overwrite(f"set the alias {CANDIDATE}", point)
    return found


def _measured_anew(client: MlflowClient, found: RegisteredVersion, tags: Mapping[str, str]) -> RegisteredVersion:
    """The version with the figures of another evaluation, and without what the gate said of the one before."""
    if GATE in found.tags:
        with asking(f"take back what the gate said of {found.uri}"):
            for tag in (GATE_VERDICT, GATE):
                client.delete_model_version_tag(found.name, str(found.version), tag)
    set_tags(client, found, tags)
    return get_version(client, found.name, found.version)


def _read_evaluation(folder: Path, stored: StoredAdapter) -> dict[str, Any]:
    report = read_report(folder)
    evaluated = [adapter.get("sha256") for adapter in report.get("adapters", ())]
    if evaluated != [stored.sha256] or report.get("base_digest") != stored.base_digest:
        raise RegistryInputError(
            f"{folder / EVALUATION} is an evaluation of {len(evaluated)} adapter(s) on "
            f"{str(report.get('base_digest'))[:12]}…, not of {stored.sha256[:12]}… alone on "
            f"{stored.base_digest[:12]}…; evaluate this adapter on its base"
        )
    return report


def _registered_model(client: MlflowClient, name: str, concept: str) -> None:
    """Create the registered model, or check that the one of this name is this concept's, or for bundles."""
    from mlflow.exceptions import MlflowException

    key = sha256_of(normalise(concept))
    with asking(f"create {name}"):
        try:
            client.create_registered_model(name, {"spare.concept": cut_tag(concept), _CONCEPT_KEY: key})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = client.get_registered_model(name).tags
    if tags.get(_CONCEPT_KEY) != key:
        raise RegistryError(
            f"the registered model {name} is there, but was not made for {concept[:60]!r} (it says "
            f"{tags.get('spare.concept', 'nothing')[:60]!r}); rename or delete it in MLflow"
        )


def _registered(client: MlflowClient, name: str, registration: str) -> RegisteredVersion | None:
    """The version that a registration made. Those that lost a race against it are deleted."""
    with asking(f"search the versions of {name}"):
        found = client.search_model_versions(f"name = '{name}' and tags.`{REGISTRATION}` = '{registration}'")
    first, *doubles = sorted(found, key=lambda version: int(version.version)) or [None]
    for double in doubles:
        with suppress(RegistryInputError), asking(f"delete as a double of {name}"):  # the other one may be faster
            client.delete_model_version(name, double.version)
    return None if first is None else checked(client, first)


def _logged_model(run: StageRun, stored: StoredAdapter, name: str, registration: str) -> str:
    """Id of the logged model that holds the adapter, complete. One that a killed try left behind is filled again."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    client = run.client
    with asking("search the logged models"):
        experiment = client.get_run(run.run_id).info.experiment_id
        model = _oldest(client, experiment, registration)
        if model is None:
            tags = {REGISTRATION: registration, ADAPTER: stored.sha256, REQUEST: run.request_id}
            label = name.replace(".", "-")  # MLflow allows no dots here
            made = client.create_logged_model(experiment, label, run.run_id, tags, model_type="adapter")
            model = _oldest(client, experiment, registration)
            if model.model_id != made.model_id:
                client.delete_logged_model(made.model_id)
            client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
    if model.status == LoggedModelStatus.READY:
        return str(model.model_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        package(folder, stored, Model(model.artifact_location, model.source_run_id, model_id=model.model_id))
        with asking("store the adapter"):
            client.log_model_artifacts(model.model_id, str(folder))
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _oldest(client: MlflowClient, experiment: str, registration: str) -> Any:
    """The logged model of a registration, by the server's clock; None if there is none."""
    found = client.search_logged_models([experiment], f"tags.`{REGISTRATION}` = '{registration}'")
    return min(found, key=lambda model: (model.creation_timestamp, model.model_id), default=None)


def _create_version(run: StageRun, name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
    with asking(f"create a version of {name}"):
        made = run.client.create_model_version(
            name, f"models:/{model_id}", run.run_id, dict(tags), model_id=model_id, await_creation_for=0
        )
    found = _registered(run.client, name, tags[REGISTRATION])
    if found is None:
        raise RegistryError(f"version {made.version} of {name} was deleted while it was registered; register it again")
    return found


def _tags(run: StageRun, stored: StoredAdapter, evaluation: Mapping[str, Any], registration: str) -> dict[str, str]:
    manifest = stored.manifest
    figures = {
        f"spare.{name}.{label}": (evaluation.get(side) or {}).get(name)
        for name in ("ua", "ira", "cra", "fid")
        for side, label in (("base", "before"), ("adapted", "after"))
    }
    measured = {f"spare.{name}": evaluation.get(name, manifest.get(name)) for name in ("residual", "mean_drift")}
    described = {"spare.concept": Erasures.of(manifest).title}
    described |= {f"spare.{name}": manifest[name] for name in ("surrogate", "kind") if name in manifest}
    fixed = {
        REGISTRATION: registration,
        REQUEST: run.request_id,
        "spare.base.digest": stored.base_digest,
        ADAPTER: stored.sha256,
    }
    values = {**fixed, **described, **figures, **measured}
    return {name: cut_tag(str(value)) for name, value in values.items() if value is not None}
