"""Registering adapters: once each, with all that is known, in a form any machine loads, on every kind of server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from spare_core.adapters.directory import load_adapter
from spare_core.adapters.manifest import MANIFEST
from spare_core.concepts.concept import Erasure
from spare_core.errors import AdapterError, InputError, ModelError, RegistryError, RegistryInputError
from spare_core.evaluation.gate import Policy
from spare_core.models.unet import UNetDenoiser
from spare_core.registry.client import connect
from spare_core.registry.models import RegisteredVersion, check_weights, get_version, judge
from spare_core.registry.naming import bundle_name, model_name
from spare_core.registry.registering import register
from spare_core.registry.tracking import stage_run
from spare_core.store import open_store
from tests.support import forking
from tests.support.adapters import store
from tests.support.mlflow_servers import PASSWORD, Server
from tests.support.registrations import FORGOT_NOTHING, register_one, set_source, write_adapter, write_evaluation

pytest_plugins = ("tests.support.mlflow_fixtures",)
pytestmark = pytest.mark.usefixtures("server")


def versions(client: MlflowClient, name: str) -> list[int]:
    return sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))


def registered(
    request: str, adapter: Path, evaluation: Path | None = None, kfp: str = "kfp-1", name: str = ""
) -> RegisteredVersion:
    with stage_run(request, "register", kfp) as run:
        return register(run, open_store(str(adapter.parent / "store")), adapter, evaluation, name)


@pytest.mark.parametrize("kind", ["mlflow_s3_server", "mlflow_auth_server", "mlflow_postgres_server"])
def test_an_adapter_goes_in_and_comes_out_of_every_kind_of_server(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    with request.getfixturevalue(kind).used():
        version = register_one(tmp_path, denoiser, 'O\'Brien "日本画" 🎨; drop table --')
        client = connect()
        assert version.passed
        assert version.tags["spare.concept"] == 'O\'Brien "日本画" 🎨; drop table --'
        check_weights(client, version)
        assert client.get_model_version_by_alias(version.name, "candidate").version == str(version.version)
        fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}@candidate", dst_path=str(tmp_path)))
        assert load_adapter(fetched / "adapter_weights").sha256 == version.adapter_sha256


def test_a_version_carries_what_is_known_of_it(client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser) -> None:
    version = register_one(tmp_path, denoiser, "Tags", judged=False)
    stored = load_adapter(tmp_path / "adapter")
    assert version.created
    assert version.name == model_name(stored.manifest["base"]["source"], stored.base_digest, "Tags")
    expected = {
        "spare.request_id": "request Tags 0", "spare.base.digest": stored.base_digest,
        "spare.adapter.sha256": stored.sha256, "spare.concept": "Tags", "spare.surrogate": "Photo",
        "spare.kind": "style", "spare.ua.before": "0.0", "spare.ua.after": "1.0", "spare.ira.after": "1.0",
        "spare.cra.before": "0.986", "spare.cra.after": "0.982", "spare.residual": "0.065", "spare.mean_drift": "0.003",
    }  # fmt: skip
    assert expected.items() <= version.tags.items()
    files = {
        file.path for folder in ("adapter", "evaluation") for file in client.list_artifacts(version.run_id, folder)
    }
    assert files == {"adapter/spare.json", "adapter/pytorch_lora_weights.safetensors", "evaluation/evaluation.json",
                     "evaluation/contact_sheet.png"}  # fmt: skip
    assert client.get_run(version.run_id).data.tags["spare.stage"] == "register"


def test_registering_again_finds_what_is_there(client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "Again")
    evaluation = write_evaluation(tmp_path / "evaluation", stored)
    first = registered("again-1", stored.folder, evaluation)
    same = registered("again-1", stored.folder, evaluation, kfp="kfp-2")
    assert (same.version, same.run_id, same.created) == (first.version, first.run_id, False)
    other = registered("again-2", stored.folder, evaluation)  # another request is another registration
    assert other.version != first.version
    assert versions(client, first.name) == [first.version, other.version]


@pytest.mark.parametrize("method", ["log_model_artifacts", "create_model_version"])
def test_a_registration_killed_anywhere_is_finished_by_the_next_and_made_once(
    method: str, client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser, server: Server
) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, f"Killed at {method}")
    evaluation = write_evaluation(tmp_path / "evaluation", stored)
    place = str(tmp_path / "store")
    die(
        "register",
        str(stored.folder),
        str(evaluation),
        f"killed-{method}",
        place,
        at=(method, 1, "after"),
        server=server,
    )
    version = registered(f"killed-{method}", stored.folder, evaluation)
    assert versions(client, version.name) == [version.version]
    assert client.get_model_version_by_alias(version.name, "candidate").version == str(version.version)
    assert len(logged_models(client, version)) == 1
    check_weights(client, version)
    assert version.tags["spare.ua.after"] == "1.0"


def die(*arguments: str, at: tuple[str, int, str], server: Server) -> None:
    """Run tests.support.dying, which must not survive."""
    command = [sys.executable, "-m", "tests.support.dying", *map(str, at), *arguments]
    environment = {**os.environ, **server.environment}
    done = forking.run(command, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def logged_models(client: MlflowClient, version: RegisteredVersion) -> list[Any]:
    experiment = client.get_experiment_by_name("spare").experiment_id
    made_by = f"tags.`spare.registration` = '{version.tags['spare.registration']}'"
    return list(client.search_logged_models([experiment], made_by))


def test_two_registrations_at_once_make_one_version(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "At once")
    evaluation = write_evaluation(tmp_path / "evaluation", stored)
    start = threading.Barrier(3)

    def work(kfp: str) -> RegisteredVersion:
        start.wait()
        return registered("at-once", stored.folder, evaluation, kfp)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, ("kfp-1", "kfp-2", "kfp-3")))
    assert len({one.version for one in found}) == 1
    assert versions(client, found[0].name) == [found[0].version]
    assert len(logged_models(client, found[0])) == 1
    check_weights(client, get_version(client, found[0].name, found[0].version))


def test_the_flavour_is_mlflows_own_and_names_no_path(tmp_path: Path, denoiser: UNetDenoiser, sd1_dir: Path) -> None:
    version = register_one(tmp_path, denoiser, "Flavour", judged=False)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "fetched")))
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert described["flavors"]["diffusers"]["base_model"] == "./base"
    assert described["flavors"]["diffusers"]["adapter_type"] == "lora"
    assert described["metadata"]["spare"]["adapter_sha256"] == version.adapter_sha256
    for file in ("MLmodel", "conda.yaml", "requirements.txt", "base/model_index.json"):
        assert str(sd1_dir) not in (folder / file).read_text()
        assert str(tmp_path) not in (folder / file).read_text()


def test_it_draws_on_a_machine_that_has_neither_spare_nor_the_base(
    tmp_path: Path, denoiser: UNetDenoiser, server: Server
) -> None:
    version = register_one(tmp_path, denoiser, "Elsewhere", judged=False)
    code = (
        "import sys, mlflow\n"
        f"model = mlflow.pyfunc.load_model('models:/{version.name}@candidate')\n"
        "pictures = model.predict(['a cat', 'a dog'], params={'num_inference_steps': 1})\n"
        "assert [picture[:4] for picture in pictures] == [b'\\x89PNG'] * 2\n"
        "assert 'spare_core' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env={**environment, **server.environment}, timeout=120,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_a_base_model_may_be_given_in_place_of_the_one_that_came_along(
    tmp_path: Path, denoiser: UNetDenoiser, sd1_dir: Path
) -> None:
    version = register_one(tmp_path, denoiser, "Override", judged=False)
    moved = shutil.copytree(sd1_dir, tmp_path / "moved")
    model = mlflow.pyfunc.load_model(version.uri, model_config={"base_model": str(moved)})
    assert model.unwrap_python_model is not None
    assert model.predict(["a cat"], params={"num_inference_steps": 1})[0].startswith(b"\x89PNG")


def test_a_hub_base_is_named_by_its_id(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "Hub")
    set_source(stored.folder, "some-org/some-model-v1.5")
    version = registered("hub", stored.folder)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "fetched")))
    described = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    assert version.name.startswith("spare.some-model-v1-5-")
    assert described["diffusers"]["base_model"] == "some-org/some-model-v1.5"
    assert described["python_function"]["config"]["base_model"] == "some-org/some-model-v1.5"
    assert not (folder / "base").exists()


def test_a_base_on_s3_stays_there(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "Bucket")
    set_source(stored.folder, "s3://models/sd15")
    version = registered("bucket", stored.folder)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "fetched")))
    described = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    assert described["python_function"]["config"]["base_model"] == "s3://models/sd15"
    assert not (folder / "base").exists()


def test_a_weight_mask_is_refused_with_what_to_do(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    store(tmp_path / "adapter", denoiser, "weight")
    with pytest.raises(RegistryInputError, match="--mask channel or --mask module"):
        registered("weight", tmp_path / "adapter")


def test_a_changed_adapter_is_refused(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "Changed")
    weights = stored.folder / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(AdapterError, match="changed or damaged"):
        registered("changed", stored.folder)


def test_figures_of_another_adapter_are_refused(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "Figures")
    other = write_adapter(tmp_path / "other", denoiser, "Figures", seed=5)
    with pytest.raises(RegistryInputError, match="evaluate this adapter on its base"):
        registered("figures", stored.folder, write_evaluation(tmp_path / "evaluation", other))
    with pytest.raises(InputError, match="is no evaluation"):
        registered("figures", stored.folder, tmp_path)


def test_another_base_in_the_place_of_the_adapters_own_is_refused(
    tmp_path: Path, denoiser: UNetDenoiser, sd2_dir: Path
) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "Base")
    set_source(stored.folder, str(sd2_dir))
    with pytest.raises(ModelError, match="not the base model that"):
        registered("base", stored.folder)


def test_a_name_that_another_concept_holds_is_not_shared(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    stored = write_adapter(tmp_path / "adapter", denoiser, "Taken")
    name = model_name(str(stored.manifest["base"]["source"]), stored.base_digest, "Taken")
    client.create_registered_model(name)
    with pytest.raises(RegistryError, match="was not made for 'Taken'"):
        registered("taken", stored.folder)


def test_a_bundle_is_registered_under_its_base_alone(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    """Where no concept goes, and its evidence says all that it erases."""
    stored = write_adapter(tmp_path / "adapter", denoiser, "Ignored")
    rows = [Erasure(name, "Photo", "style", (), "{concept}", ()).as_dict() for name in ("Neon", "Rust")]
    rest = {name: value for name, value in stored.manifest.items() if name not in rows[0]}
    (stored.folder / MANIFEST).write_text(json.dumps({**rest, "requests": rows}))
    version = registered("bundle", stored.folder)
    name = bundle_name(str(stored.manifest["base"]["source"]), stored.base_digest)
    assert (version.name, version.tags["spare.concept"]) == (name, "Neon, Rust")
    assert client.get_registered_model(name).tags["spare.concept"] == "(bundle)"
    with pytest.raises(RegistryError, match="was not made for 'Alone'"):
        registered("alone", write_adapter(tmp_path / "alone", denoiser, "Alone").folder, name=name)


def test_a_version_that_points_elsewhere_is_none_of_ours(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    """All tags are right, the gate's too; only the files are somewhere else."""
    version = register_one(tmp_path / "one", denoiser, "Forged")
    other = register_one(tmp_path / "other", denoiser, "Forged from", seed=3)
    for source, model_id in (("s3://artifacts/evil", None), (f"models:/{other.model_id}", other.model_id)):
        forged = client.create_model_version(
            version.name, source, tags=dict(version.tags), model_id=model_id, await_creation_for=0
        )
        with pytest.raises(RegistryInputError, match=r"not registered by SPARE|not what was registered"):
            get_version(client, version.name, int(forged.version))


def test_weights_that_were_changed_in_the_registry_are_noticed(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    version = register_one(tmp_path, denoiser, "Swapped")
    other = write_adapter(tmp_path / "other", denoiser, "Swapped", seed=9)
    client.log_model_artifacts(version.model_id, str(other.folder), "adapter_weights")
    with pytest.raises(RegistryError, match="someone changed its files"):
        check_weights(client, version)
    weights = tmp_path / "pytorch_lora_weights.safetensors"
    weights.write_bytes(b"rubbish")
    client.log_model_artifact(version.model_id, str(weights), "adapter_weights")
    with pytest.raises(RegistryError, match="are damaged"):
        check_weights(client, version)


def test_weights_that_are_gone_from_the_bucket_are_noticed(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    version = register_one(tmp_path, denoiser, "Gone")
    location = client.get_logged_model(version.model_id).artifact_location
    get_artifact_repository(location).delete_artifacts("adapter_weights")
    with pytest.raises(RegistryError):
        check_weights(client, version)


def test_a_verdict_is_kept_as_tags_and_as_a_document(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    refused = register_one(tmp_path, denoiser, "Verdict", good=False)
    assert not refused.passed
    assert refused.tags["spare.gate"] == "refused"
    assert refused.tags["spare.gate.reasons"] == "UA, lower 95 % bound: 0; at least 0.75 is needed"
    assert refused.tags["spare.gate.policy"] == Policy.from_file().sha256
    path = mlflow.artifacts.download_artifacts(run_id=refused.run_id, artifact_path="gate.json", dst_path=str(tmp_path))
    verdict = json.loads(Path(path).read_text())
    assert (verdict["version"], verdict["passed"]) == (refused.version, False)
    assert len(verdict["reasons"]) == 17
    rules = {tag: value for tag, value in refused.tags.items() if tag.startswith("spare.gate.rule.")}
    assert rules == {"spare.gate.rule.min_ua": refused.tags["spare.gate.reasons"]}, "only what is not met"

    place = open_store(str(tmp_path / "store"))
    kept = json.loads(place.read(f"evidence/{refused.tags['spare.gate.verdict']}.json"))
    assert kept == verdict
    lenient = dataclasses.replace(Policy.from_file(), min_ua=0.0, fid=False)
    _, sha256 = judge(refused, place, lenient)
    tags = get_version(client, refused.name, refused.version).tags
    assert (tags["spare.gate"], tags["spare.gate.verdict"]) == ("passed", sha256)
    assert "spare.gate.rule.min_ua" not in tags, "of the policy before"


def test_the_evidence_is_kept_by_digest(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    version = register_one(tmp_path, denoiser, "Evidence", judged=False)
    place = open_store(str(tmp_path / "store"))
    evidence = json.loads(place.read(f"evidence/{version.tags['spare.evidence']}.json"))
    assert (evidence["adapter_sha256"], evidence["erased"]) == (version.adapter_sha256, {"Evidence": "Photo"})
    assert {*evidence["files"]} == {
        "adapter/spare.json", "adapter/pytorch_lora_weights.safetensors", "evaluation/evaluation.json",
        "evaluation/contact_sheet.png",
    }  # fmt: skip
    for name, key in evidence["files"].items():
        assert place.read(key) == (tmp_path / name).read_bytes()
        assert key.partition(".")[0] == f"artifacts/{hashlib.sha256(place.read(key)).hexdigest()}"


def test_an_adapter_measured_anew_is_what_the_newer_evaluation_says(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    first = register_one(tmp_path, denoiser, "Anew")
    assert first.passed
    stored = load_adapter(tmp_path / "adapter")
    worse = write_evaluation(tmp_path / "worse", stored, adapted=FORGOT_NOTHING)
    again = registered("request Anew 0", stored.folder, worse, kfp="kfp-2")
    assert (again.version, again.created, again.tags["spare.ua.after"]) == (first.version, False, "0.0")
    assert "spare.gate" not in again.tags, "what was said is said of other figures"
    assert not judge(again, open_store(str(tmp_path / "store")), Policy.from_file())[0].passed
    assert versions(client, first.name) == [first.version]


def test_no_secret_of_the_environment_is_registered(
    client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    version = register_one(tmp_path / "made", denoiser, "Secret")
    fetched = tmp_path / "fetched"
    mlflow.artifacts.download_artifacts(version.uri, dst_path=str(fetched / "model"))
    mlflow.artifacts.download_artifacts(run_id=version.run_id, dst_path=str(fetched / "run"))
    files = [file for file in fetched.rglob("*") if file.is_file()]
    assert len(files) > 15
    assert not [file for file in files if PASSWORD.encode() in file.read_bytes()]
    assert PASSWORD not in str(version.tags) + str(client.get_run(version.run_id).to_dictionary())
