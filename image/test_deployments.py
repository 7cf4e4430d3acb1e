"""The servers of k8s/, started from the image with the very commands of their Deployments."""

import base64
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import yaml

from image.build import ROOT
from image.conftest import NETWORK, STORE, TAG
from image.docker_runner import options
from image.engine import docker
from tests.tiny import build_sd1

PASSWORD = "correct horse battery"
START_SECONDS = 90


def deployment(name):
    """The only container of a Deployment of the base."""
    documents = yaml.safe_load_all((ROOT / "k8s" / "base" / f"{name}.yaml").read_text())
    (found,) = (document for document in documents if document["kind"] == "Deployment")
    (container,) = found["spec"]["template"]["spec"]["containers"]
    return container


@contextmanager
def started(host, name, environment, volumes=()):
    """A Deployment's container; yields the URL of its port and what asks its log."""
    container = deployment(name)
    fixed = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    values = {**fixed, **environment}
    command = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word)
               for word in (*container["command"], *container["args"])]  # fmt: skip
    given = [part for variable, value in values.items() for part in ("--env", f"{variable}={value}")]
    mounts = [part for volume in volumes for part in ("--volume", volume)]
    place = ["--workdir", container["workingDir"]] if "workingDir" in container else []
    arguments = [*options(NETWORK), *given, *mounts, *place, "--entrypoint", command[0], TAG, *command[1:]]
    run = docker(host, "run", "--detach", *arguments).stdout.strip()
    try:
        address = docker(
            host, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", run
        ).stdout.strip()
        (port,) = container["ports"]
        assert address, docker(host, "logs", run).stderr[-2000:]
        yield f"http://{address}:{port['containerPort']}", lambda: docker(host, "logs", run)
    finally:
        docker(host, "rm", "--force", run)


def probed(url, container, kind, log, wanted=200):
    """Ask a probe until it answers as wanted."""
    path = container[kind]["httpGet"]["path"]
    deadline = time.monotonic() + START_SECONDS
    while (status := ask(f"{url}{path}")[0]) != wanted:
        if time.monotonic() > deadline:
            told = log()
            pytest.fail(f"{path} answers {status}, not {wanted}\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
        time.sleep(0.5)
    return ask(f"{url}{path}")[1]


def ask(url, body=None, **headers):
    """Status and body; 0 where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def test_mlflow_starts_lets_nobody_in_without_a_password_and_answers_to_its_own_names_only(host, services, tmp_path):
    (tmp_path / "basic_auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:////tmp/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    tmp_path.chmod(0o755)
    secret = {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db", "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "long and random",
    }  # fmt: skip
    container = deployment("mlflow")
    with started(host, "mlflow", secret, [f"{tmp_path}:/etc/mlflow:ro"]) as (url, log):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            probed(url, container, probe, log)
        search = f"{url}/api/2.0/mlflow/experiments/search"
        basic = f"Basic {base64.b64encode(f'admin:{PASSWORD}'.encode()).decode()}"
        asked = {"max_results": 5}
        assert ask(search, asked, Host="spare-mlflow:5000")[0] == 401
        assert ask(search, asked, Host="spare-mlflow:5000", Authorization=basic)[0] == 200
        assert ask(search, asked, Host="spare-mlflow.spare.svc:5000", Authorization=basic)[0] == 200
        user = {"username": "spare", "password": "another long one"}
        create = f"{url}/api/2.0/mlflow/users/create"
        assert ask(create, user, Host="spare-mlflow:5000", Authorization=basic)[0] == 200
        assert ask(create, user, Host="spare-mlflow:5000")[0] == 401
        assert ask(search, asked, Host="elsewhere.example.org:5000", Authorization=basic)[0] == 403


def test_the_image_server_draws_with_the_champion_and_gets_no_traffic_with_another_base(
    host, services, champion, tmp_path
):
    container = deployment("images")
    told = {**services, "NAME": champion, "BASE": "canvas", "DEVICE": "cpu", "SPARE_STORE": STORE}
    (tmp_path / "token").write_text("may-have-pictures-drawn")
    other = build_sd1(tmp_path / "other")
    subprocess.run(["chmod", "--recursive", "a+rX", tmp_path], check=True)
    token, bearer = f"{tmp_path}:/etc/spare/images:ro", {"Authorization": "Bearer may-have-pictures-drawn"}
    with started(host, "images", told, [token]) as (url, log):
        probed(url, container, "startupProbe", log)
        ready = json.loads(probed(url, container, "readinessProbe", log))
        assert ready["problem"] is None
        asked = {"prompt": "A Cat image in Neon Lines style.", "steps": 2}
        assert ask(f"{url}/generate", asked)[0] == 401
        status, picture = ask(f"{url}/generate", asked, **bearer)
        assert (status, picture[:4]) == (200, b"\x89PNG"), log().stderr[-2000:]

    with started(host, "images", {**told, "BASE": "/models/other"}, [token, f"{other}:/models/other:ro"]) as (url, log):
        probed(url, container, "startupProbe", log)
        deadline = time.monotonic() + START_SECONDS
        while "is for the base" not in (refused := probed(url, container, "readinessProbe", log, 503).decode()):
            assert time.monotonic() < deadline, refused
            time.sleep(0.5)
        assert ask(f"{url}/generate", asked, **bearer)[0] == 503


def test_the_audit_says_what_became_of_the_promotion(host, services, champion):
    container = deployment("audit")
    with started(host, "audit", {**services, "SPARE_STORE": STORE}) as (url, log):
        probed(url, container, "startupProbe", log)
        deadline = time.monotonic() + START_SECONDS
        while f'spare_promotions_total{{model="{champion}"}} 1.0' not in (told := ask(f"{url}/metrics")[1].decode()):
            assert time.monotonic() < deadline, told
            time.sleep(0.5)
        assert f'spare_promotion_log_whole{{model="{champion}"}} 1.0' in told
