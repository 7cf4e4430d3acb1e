"""The committed pipeline against real servers: MLflow behind basic-auth and S3, which also holds the base model.

They fail at the start, then in the middle, and what was asked is finished all the same by asking again. Every variable
that can hold a credential holds one, and afterwards none is anywhere. One run of the pipeline for the whole module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from serving import demo_services
from serving.services import free_port, mlflow_server, s3_server
from spare_core.canvas.protocol import CANVAS
from spare_core.registry.promotions import CHAMPION
from spare_core.registry.views import verify
from spare_core.store import open_store
from tests.support.drawing import draw
from tests.support.faulty_proxy import faulty_proxy
from tests.support.mlflow_servers import KEEPER, basic_auth
from tests.support.workplaces import Workplace, wait_for_stage

NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD",
         "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "KFP_EXISTING_TOKEN")  # fmt: skip
SECRETS = {name: f"planted-{number}-in-{name.lower()}" for number, name in enumerate(NAMES)}
BUCKET = "site"
STORE = f"s3://{BUCKET}/prod"


@dataclass
class Site:
    """Servers, a folder to run in, and what each run there printed."""

    place: Workplace
    servers: Path
    environment: dict[str, str]
    printed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    ends: dict[str, tuple[int, str]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def refused_at_start(self, what: str, **changes: str) -> None:
        """A run that cannot reach something; from the first task's start it is timed."""
        process = self.place.start(**{**self.environment, **changes})
        wait_for_stage(process, "validate")
        began = time.monotonic()
        assert process.stderr
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "validate" in line and "failed" in line:
                self.seconds[what] = time.monotonic() - began
        process.communicate(timeout=120)
        self.ends[what] = (process.returncode, "".join(lines))
        self.printed += lines

    def broken_in(self, what: str, stage: str, variable: str) -> None:
        """A run whose way to the server that ``variable`` names is cut while a stage is at work."""
        with faulty_proxy(self.environment[variable]) as proxy:
            environment = {**self.environment, variable: proxy.uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
            self.ends[what] = self.place.run_and_break(stage, proxy.close, **environment)
        self.printed.append(self.ends[what][1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """S3 and MLflow out of reach at the start, then lost in the middle; then a run to the end."""
    servers, place = tmp_path_factory.mktemp("servers"), Workplace(tmp_path_factory.mktemp("site"))
    auth = basic_auth(servers, SECRETS["MLFLOW_TRACKING_PASSWORD"])
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_server(servers, BUCKET))
        s3 |= {name: secret for name, secret in SECRETS.items() if name in s3}
        uri = stack.enter_context(mlflow_server(
            servers, "sqlite:///mlflow.db", f"s3://{BUCKET}/mlflow", {**s3, **auth}, ["--app-name", "basic-auth"],
        ))  # fmt: skip
        environment = {
            **s3, **SECRETS, "MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": KEEPER,
            "SPARE_STORE": STORE, "SPARE_CACHE": str(place.folder / "cache"),
        }  # fmt: skip
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)
        model = f"s3://{BUCKET}/models/canvas"
        open_store(model).upload(CANVAS.pipeline, "")
        given = [
            one for one in demo_services.arguments()
            if not one.startswith(("model=", "keep=", "contexts=", "suite=", "surrogate="))
        ]  # fmt: skip
        place.arguments = [
            *given, f"model={model}", 'contexts=["Cat", "Dog"]', "surrogate=Photo",
            *(one for one in place.arguments if one.startswith(("keep=", "settings=", "suite="))),
        ]  # fmt: skip
        site = Site(place, servers, environment)
        nowhere = f"http://127.0.0.1:{free_port()}"
        site.refused_at_start("no S3", AWS_ENDPOINT_URL=nowhere)
        site.refused_at_start(
            "no MLflow", MLFLOW_TRACKING_URI=nowhere.replace("//", f"//keeper:{SECRETS['HF_TOKEN']}@")
        )
        site.broken_in("S3 lost", "timesteps", "AWS_ENDPOINT_URL")
        site.broken_in("MLflow lost", "distill", "MLFLOW_TRACKING_URI")
        done = place.run(**environment)
        site.printed += [done.stdout, done.stderr]
        assert done.returncode == 0, done.stderr
        site.report = json.loads(done.stdout)
        yield site


@pytest.mark.parametrize(("what", "words"), [
    ("no S3", "error: validate: s3://site/prod: 127.0.0.1:"), ("no MLflow", "error: validate: MLflow at http://127.0.0.1:")
])  # fmt: skip
def test_a_server_that_is_not_there_is_named_at_once_and_nothing_is_done(site: Site, what: str, words: str) -> None:
    code, said = site.ends[what]
    assert code == 1
    assert said.strip().splitlines()[-1].startswith(words)
    assert "prepare" not in said
    assert site.seconds[what] < 10


@pytest.mark.parametrize(("what", "stage", "words"), [
    ("S3 lost", "timesteps", "could not be reached, or broke off"), ("MLflow lost", "distill", "cannot be reached"),
])  # fmt: skip
def test_a_server_that_is_lost_in_the_middle_is_a_clear_failure(site: Site, what: str, stage: str, words: str) -> None:
    code, said = site.ends[what]
    assert code == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"error: {stage}: ")
    assert words in last


def test_what_failed_is_recorded_where_it_can_be(site: Site) -> None:
    """By the run that lost S3; the one that lost MLflow had nowhere to."""
    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'spare'")
    (lost,) = client.search_runs([experiment.experiment_id], "tags.spare.stage = 'timesteps' and status = 'FAILED'")
    assert "StoreUnavailable: s3://site/prod: " in lost.data.tags["spare.error"]


def test_asked_again_it_takes_what_was_done_and_completes(site: Site) -> None:
    taken = [stage for stage, seconds in site.report["seconds"].items() if seconds is None]
    assert {"prepare", "timesteps", "saliency"} <= {*taken}
    name = site.report["results"]["register"]["name"]
    assert name.startswith("spare.canvas-")
    champion = MlflowClient().get_model_version_by_alias(name, CHAMPION)
    assert int(champion.version) == site.report["results"]["promote"]["aliases"]["champion"] == 1
    assert verify(name, open_store(STORE))["entries"] == 2


def test_everything_that_outlives_the_run_is_in_the_bucket(site: Site) -> None:
    store, name = open_store(STORE), site.report["results"]["register"]["name"]
    keys = open_store(f"s3://{BUCKET}").list("")
    assert {key.partition("/")[0] for key in keys} == {"models", "prod", "mlflow"}
    assert store.list("promotions") == [f"promotions/{name}/{number:08d}.json" for number in (1, 2)]
    announced = json.loads(store.read(f"promotions/{name}/00000001.json"))
    verdict = json.loads(store.read(f"evidence/{announced['verdict_sha256']}.json"))
    evidence = json.loads(store.read(f"evidence/{verdict['evidence_sha256']}.json"))
    assert {*evidence["files"]} == {
        "adapter/pytorch_lora_weights.safetensors", "adapter/spare.json", "evaluation/evaluation.json",
        "evaluation/contact_sheet.png", "evaluation/timesteps.png",
    }  # fmt: skip
    assert {*evidence["files"].values()} == {*store.list("artifacts")}
    assert evidence["adapter_sha256"] == announced["adapter_sha256"]
    sent = [json.loads(store.read(key)) for key in store.list("requests")]
    (order,) = (one for one in sent if one.get("schema", "").startswith("spare.order/"))
    assert [one for one in sent if one is not order] == [verdict["policy"]], "what it was judged by"
    assert order["request"]["model"] == f"s3://{BUCKET}/models/canvas"
    artifacts = {key.rpartition("/")[2] for key in keys if key.startswith("mlflow/")}
    assert {"MLmodel", "pytorch_lora_weights.safetensors", "evaluation.json", "contact_sheet.png", "timesteps.html",
            "gate.json"} <= artifacts  # fmt: skip


def test_the_champion_draws_with_a_base_from_the_bucket(site: Site) -> None:
    name = site.report["results"]["register"]["name"]
    done = draw(f"models:/{name}@champion", os.environ)
    site.printed += [done.stdout, done.stderr]
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == repr(b"\x89PNG")


def test_after_all_that_no_secret_is_anywhere(site: Site) -> None:
    """Files of the run, what it printed, MLflow's databases and logs, every object in the bucket."""
    searched = {str(file): file.read_bytes() for folder in (site.place.folder, site.servers)
                for file in folder.rglob("*") if file.is_file()}  # fmt: skip
    store = open_store(f"s3://{BUCKET}")
    searched |= {key: store.read(key) for key in store.list("")}
    compiled = site.place.folder / "compiled.yaml"
    subprocess.run([sys.executable, "-W", "ignore", "-m", "pipelines.spare", "--output", str(compiled)],
                   cwd=Path(__file__).parents[2], check=True, timeout=120)  # fmt: skip
    searched["compiled"] = compiled.read_bytes()
    searched |= {f"printed {number}": text.encode() for number, text in enumerate(site.printed)}
    assert any(name.endswith("mlflow.db") for name in searched)
    assert len(searched) > 100
    # Which key signs a request is for the storage to know: its own log may name it, as S3's access logs do.
    allowed = {str(site.servers / "s3.log"): {"AWS_ACCESS_KEY_ID"}}
    found = {
        (name, variable)
        for name, content in searched.items()
        for variable, secret in SECRETS.items()
        if secret.encode() in content and variable not in allowed.get(name, ())
    }
    assert found == set()
