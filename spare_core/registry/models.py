"""Adapters in the registry: one version an adapter and request, with all that is known of it as tags.

MLflow creates neither logged models nor versions conditionally. So both carry a tag made of request and adapter, and
the one that is there is used: of several that raced, the oldest stays. A version is created with all its tags in one
call; killed before, a try leaves no version at all, and the next one goes on with what it finds.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spare_core.adapters.directory import StoredAdapter, load_adapter
from spare_core.concepts.concept import normalise
from spare_core.concepts.erasures import Erasures
from spare_core.errors import AdapterError, RegistryError, RegistryInputError
from spare_core.evaluation.gate import Policy, Reason, Verdict, judge_figures
from spare_core.evaluation.report_files import EVALUATION, read_report
from spare_core.registry.client import asking, connect, overwrite
from spare_core.registry.evidence import FILES, keep_document, keep_evidence, read_evaluation
from spare_core.registry.naming import bundle_name, check_name, model_name
from spare_core.registry.packaging import WEIGHTS, check_lora, package
from spare_core.registry.tracking import EXPERIMENT, REQUEST, StageRun, sha256_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from spare_core.store import Store

CANDIDATE: Final = "candidate"
ADAPTER: Final = "spare.adapter.sha256"
GATE: Final = "spare.gate"
GATE_VERDICT: Final = "spare.gate.verdict"
"""sha256 of the verdict's document in the store."""
GATE_POLICY: Final = "spare.gate.policy"
GATE_REASONS: Final = "spare.gate.reasons"
GATE_RULE: Final = "spare.gate.rule."
EVIDENCE: Final = "spare.evidence"
"""sha256 of the document in the store that lists what the version is judged by."""
FORCED: Final = "spare.forced"
FORCED_REASON: Final = "spare.forced.reason"
_CONCEPT_KEY: Final = "spare.concept_key"
_REGISTRATION: Final = "spare.registration"
"""sha256 of request id and adapter: what may exist only once."""
_TAG_CHARACTERS: Final = 5000
BUNDLE: Final = "(bundle)"
"""In place of a concept, what a registered model of bundles is made for."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of ours; ``tags`` are as they were when it was read."""

    name: str
    version: int
    run_id: str
    model_id: str
    tags: Mapping[str, str]
    created: bool = False

    @property
    def uri(self) -> str:
        """What MLflow loads it by."""
        return f"models:/{self.name}/{self.version}"

    @property
    def adapter_sha256(self) -> str:
        """Of the adapter's weights file."""
        return self.tags[ADAPTER]

    @property
    def passed(self) -> bool:
        """What the gate said last; a promotion asks it again."""
        return self.tags.get(GATE) == "passed"


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


def get_version(client: MlflowClient, name: str, version: int) -> RegisteredVersion:
    """A version, if it is one of ours: with our tags, and its files where this experiment keeps its models.

    MLflow itself accepts any address as a version's source.

    Raises:
        RegistryInputError: if there is none, or it is none of ours.
    """
    check_name(name)
    with asking(f"show as version {version} of {name}"):
        found = client.get_model_version(name, str(version))
    return _checked(client, found)


def check_weights(client: MlflowClient, version: RegisteredVersion) -> None:
    """Fetch the adapter as it lies in the registry and compare it with what its tags say was evaluated.

    Raises:
        RegistryError: if it is gone, damaged, or another one.
    """
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as folder:
        with asking(f"fetch {version.uri}"):
            location = client.get_logged_model(version.model_id).artifact_location
            # MLflow addresses by its own variable what it does not address by the client.
            path = download_artifacts(f"{location}/{WEIGHTS}", dst_path=folder, tracking_uri=client.tracking_uri)
        try:
            found = load_adapter(Path(path)).sha256
        except AdapterError as error:
            raise RegistryError(f"{version.uri}: its files in MLflow are damaged: {error}; register it again") from None
    if found != version.adapter_sha256:
        raise RegistryError(
            f"{version.uri} holds the adapter {found[:12]}…, but {version.adapter_sha256[:12]}… is what was registered "
            "and evaluated; someone changed its files, register it again"
        )


def judge(version: RegisteredVersion, store: Store, policy: Policy) -> tuple[Verdict, str]:
    """The verdict of a policy on a version's evidence in the store, and the sha256 of the verdict's own document there.

    It is recorded on the version as tags, each rule with what was measured, and as ``gate.json`` of its run, unless it
    is what was recorded last.

    Raises:
        RegistryError: if the evidence is gone, was changed, or is about another adapter.
    """
    evidence = version.tags.get(EVIDENCE, "")
    if not evidence:
        raise RegistryError(f"{version.uri} has no tag {EVIDENCE!r} to judge it by; register the adapter again")
    verdict = judge_figures(read_evaluation(store, evidence, version.adapter_sha256), policy)
    report = {**verdict.as_dict(), "model": version.name, "version": version.version,
              "adapter_sha256": version.adapter_sha256, "evidence_sha256": evidence}  # fmt: skip
    sha256 = keep_document(store, report)
    if version.tags.get(GATE_VERDICT) != sha256:
        _record(version, verdict, sha256, report)
    return verdict, sha256


def _record(version: RegisteredVersion, verdict: Verdict, sha256: str, report: Mapping[str, Any]) -> None:
    """The tag that says that this verdict is recorded is the last to be set: killed before, it is recorded again."""
    client = connect()
    rules = {f"{GATE_RULE}{reason.rule}": _told(reason) for reason in _worst(verdict)}
    tags = {
        **rules, GATE: "passed" if verdict.passed else "refused", GATE_POLICY: verdict.policy.sha256,
        GATE_REASONS: _cut("; ".join(verdict.refusals) or "every rule is met"), GATE_VERDICT: sha256,
    }  # fmt: skip
    with asking(f"record the gate's verdict on {version.uri}"):
        client.log_text(version.run_id, json.dumps(report, indent=2, ensure_ascii=False), "gate.json")
        for tag in version.tags:
            if tag.startswith(GATE_RULE) and tag not in rules:  # of another policy
                client.delete_model_version_tag(version.name, str(version.version), tag)
    _set_tags(client, version, tags)


def _worst(verdict: Verdict) -> list[Reason]:
    """One reason a rule: of those about several concepts, the one that is nearest to refusing, or refuses."""
    worst: dict[str, Reason] = {}
    for reason in sorted(verdict.reasons, key=lambda one: (one.passed, one.measured is not None, -(one.measured or 0))):
        worst.setdefault(reason.rule, reason)
    return list(worst.values())


def _told(reason: Reason) -> str:
    return _cut(f"{'passed' if reason.passed else 'refused'}: {reason.text}")


def _set_tags(client: MlflowClient, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
    for tag, value in tags.items():
        if version.tags.get(tag) != value:
            set_tag = partial(client.set_model_version_tag, version.name, str(version.version), tag, value)
            overwrite(f"tag {version.uri}", set_tag)


def _measured_anew(client: MlflowClient, found: RegisteredVersion, tags: Mapping[str, str]) -> RegisteredVersion:
    """The version with the figures of another evaluation, and without what the gate said of the one before."""
    if GATE in found.tags:
        with asking(f"take back what the gate said of {found.uri}"):
            for tag in (GATE_VERDICT, GATE):
                client.delete_model_version_tag(found.name, str(found.version), tag)
    _set_tags(client, found, tags)
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
            client.create_registered_model(name, {"spare.concept": _cut(concept), _CONCEPT_KEY: key})
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
        found = client.search_model_versions(f"name = '{name}' and tags.`{_REGISTRATION}` = '{registration}'")
    first, *doubles = sorted(found, key=lambda version: int(version.version)) or [None]
    for double in doubles:
        with suppress(RegistryInputError), asking(f"delete as a double of {name}"):  # the other one may be faster
            client.delete_model_version(name, double.version)
    return None if first is None else _checked(client, first)


def _logged_model(run: StageRun, stored: StoredAdapter, name: str, registration: str) -> str:
    """Id of the logged model that holds the adapter, complete. One that a killed try left behind is filled again."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    client = run.client
    with asking("search the logged models"):
        experiment = client.get_run(run.run_id).info.experiment_id
        model = _oldest(client, experiment, registration)
        if model is None:
            tags = {_REGISTRATION: registration, ADAPTER: stored.sha256, REQUEST: run.request_id}
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
    found = client.search_logged_models([experiment], f"tags.`{_REGISTRATION}` = '{registration}'")
    return min(found, key=lambda model: (model.creation_timestamp, model.model_id), default=None)


def _create_version(run: StageRun, name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
    with asking(f"create a version of {name}"):
        made = run.client.create_model_version(
            name, f"models:/{model_id}", run.run_id, dict(tags), model_id=model_id, await_creation_for=0
        )
    found = _registered(run.client, name, tags[_REGISTRATION])
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
    told = {"spare.concept": Erasures.of(manifest).title}
    told |= {f"spare.{name}": manifest[name] for name in ("surrogate", "kind") if name in manifest}
    fixed = {
        _REGISTRATION: registration,
        REQUEST: run.request_id,
        "spare.base.digest": stored.base_digest,
        ADAPTER: stored.sha256,
    }
    values = {**fixed, **told, **figures, **measured}
    return {name: _cut(str(value)) for name, value in values.items() if value is not None}


def _checked(client: MlflowClient, found: Any) -> RegisteredVersion:
    model_id = str(found.source).removeprefix("models:/")
    where = f"version {found.version} of {found.name}"
    if not {ADAPTER, REQUEST, _REGISTRATION} <= found.tags.keys() or not found.source.startswith("models:/m-"):
        raise RegistryInputError(
            f"{where} was not registered by SPARE (its source is {found.source}); use one that was"
        )
    with asking(f"show as the files of {where}"):
        model = client.get_logged_model(model_id)
        experiment = client.get_experiment(model.experiment_id)
    root = f"{experiment.artifact_location.rstrip('/')}/"
    inside = model.artifact_location.startswith(root) and ".." not in model.artifact_location
    same = model.tags.get(_REGISTRATION) == found.tags[_REGISTRATION]
    if experiment.name != EXPERIMENT or not inside or not same:
        raise RegistryInputError(
            f"{where} points at {found.source} in {model.artifact_location}, which is not what was registered as that "
            f"version in the experiment {EXPERIMENT!r}; delete the version and register the adapter again"
        )
    return RegisteredVersion(found.name, int(found.version), str(found.run_id), model_id, dict(found.tags))


def _cut(text: str) -> str:
    return text if len(text) <= _TAG_CHARACTERS else text[: _TAG_CHARACTERS - 1] + "…"
