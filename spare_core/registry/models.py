"""Versions of registered models: what is known of each as tags, its files in MLflow, and the gate's verdict on it."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spare_core.adapters.manifest import sha256_in, verified_manifest
from spare_core.errors import AdapterError, RegistryError, RegistryInputError
from spare_core.evaluation.gate import Policy, Reason, Verdict, judge_figures
from spare_core.registry.client import asking, connect, overwrite
from spare_core.registry.evidence import keep_document, read_evaluation
from spare_core.registry.naming import check_name
from spare_core.registry.tracking import EXPERIMENT, REQUEST

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from spare_core.store import Store

CANDIDATE: Final = "candidate"
WEIGHTS: Final = "adapter_weights"
"""The folder of a version's files that is a whole adapter directory of ours."""
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
REGISTRATION: Final = "spare.registration"
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
        """sha256 of the adapter's weights file."""
        return self.tags[ADAPTER]

    @property
    def passed(self) -> bool:
        """What the gate said last; a promotion asks it again."""
        return self.tags.get(GATE) == "passed"


def get_version(client: MlflowClient, name: str, version: int) -> RegisteredVersion:
    """A version, if it is one of ours: with our tags, and its files where this experiment keeps its models.

    MLflow itself accepts any address as a version's source.

    Raises:
        RegistryInputError: if there is none, or it is none of ours.
    """
    check_name(name)
    with asking(f"show as version {version} of {name}"):
        found = client.get_model_version(name, str(version))
    return checked(client, found)


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
            found = sha256_in(verified_manifest(Path(path)))
        except AdapterError as error:
            raise RegistryError(f"{version.uri}: its files in MLflow are damaged: {error}; register it again") from None
    if found != version.adapter_sha256:
        raise RegistryError(
            f"{version.uri} holds the adapter {found[:12]}…, but {version.adapter_sha256[:12]}… is what was registered "
            "and evaluated; someone changed its files, register it again"
        )


def judge(version: RegisteredVersion, store: Store, policy: Policy) -> tuple[Verdict, str]:
    """The verdict of a policy on a version's evidence in the store, and the sha256 of the verdict's own document there.

    It is recorded on the version as tags, each rule that is not met with what was measured, and as ``gate.json`` of its
    run, unless it is what was recorded last.

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
    """Record a verdict on the version. The tag that marks it as recorded comes last: a killed attempt is repeated."""
    client = connect()
    rules = {f"{GATE_RULE}{reason.rule}": cut_tag(reason.text) for reason in _worst(verdict)}
    tags = {
        **rules, GATE: "passed" if verdict.passed else "refused", GATE_POLICY: verdict.policy.sha256,
        GATE_REASONS: cut_tag("; ".join(verdict.refusals) or "every rule is met"), GATE_VERDICT: sha256,
    }  # fmt: skip
    with asking(f"record the gate's verdict on {version.uri}"):
        client.log_text(version.run_id, json.dumps(report, indent=2, ensure_ascii=False), "gate.json")
        for tag in version.tags:
            if tag.startswith(GATE_RULE) and tag not in rules:  # not met by another policy, or other figures
                client.delete_model_version_tag(version.name, str(version.version), tag)
    set_tags(client, version, tags)


def _worst(verdict: Verdict) -> list[Reason]:
    """One reason for each rule that is not met: what was not measured, else what is furthest off. Those that are met
    would only hide these, and MLflow is asked twice for each tag."""

    def off(reason: Reason) -> float:
        return math.inf if reason.measured is None else abs(reason.measured - reason.allowed)

    worst: dict[str, Reason] = {}
    for reason in sorted(verdict.reasons, key=off, reverse=True):
        if not reason.passed:
            worst.setdefault(reason.rule, reason)
    return list(worst.values())


def set_tags(client: MlflowClient, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
    """Set those of the ``tags`` that a version does not have already."""
    for tag, value in tags.items():
        if version.tags.get(tag) != value:
            set_tag = partial(client.set_model_version_tag, version.name, str(version.version), tag, value)
            overwrite(f"tag {version.uri}", set_tag)


def checked(client: MlflowClient, found: Any) -> RegisteredVersion:
    """A version as MLflow shows it, if it is one of ours.

    Raises:
        RegistryInputError: if it is not.
    """
    model_id = str(found.source).removeprefix("models:/")
    where = f"version {found.version} of {found.name}"
    if not {ADAPTER, REQUEST, REGISTRATION} <= found.tags.keys() or not found.source.startswith("models:/m-"):
        raise RegistryInputError(
            f"{where} was not registered by SPARE (its source is {found.source}); use one that was"
        )
    with asking(f"show as the files of {where}"):
        model = client.get_logged_model(model_id)
        experiment = client.get_experiment(model.experiment_id)
    root = f"{experiment.artifact_location.rstrip('/')}/"
    inside = model.artifact_location.startswith(root) and ".." not in model.artifact_location
    same = model.tags.get(REGISTRATION) == found.tags[REGISTRATION]
    if experiment.name != EXPERIMENT or not inside or not same:
        raise RegistryInputError(
            f"{where} points at {found.source} in {model.artifact_location}, which is not what was registered as that "
            f"version in the experiment {EXPERIMENT!r}; delete the version and register the adapter again"
        )
    return RegisteredVersion(found.name, int(found.version), str(found.run_id), model_id, dict(found.tags))


def cut_tag(text: str) -> str:
    """A text as long as MLflow takes it in a tag."""
    return text if len(text) <= _TAG_CHARACTERS else text[: _TAG_CHARACTERS - 1] + "…"
