"""A Docker engine, the image built in it, and a network on which there are MLflow and S3 and nothing else."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from image.build import ROOT, VERSION, build
from image.docker_runner import options
from image.engine import docker, engine
from pipelines.definition import SPARE
from serving.services import mlflow_server, s3_server
from spare_core.workflow.events import read_event

TAG = f"spare:{VERSION}"
NETWORK = f"spare-inner-{os.getpid()}"  # one of a run that was killed is in nobody's way
STORE = "s3://spare/docker"
ARGUMENTS = {"model": "canvas", "erase": "Neon Lines", "surrogate": "Pencil Drawing", "seeds": 1}


@pytest.fixture(scope="session")
def host():
    """The environment of docker's clients."""
    with engine(ROOT / "out" / "docker") as environment:
        build(environment, "cpu", TAG)
        yield environment


@pytest.fixture(scope="session")
def gateway(host):
    """The address of this machine on a network that leads nowhere else."""
    docker(host, "network", "create", "--internal", NETWORK)
    try:
        told = docker(host, "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", NETWORK)
        yield told.stdout.strip()
    finally:
        docker(host, "network", "rm", NETWORK)


@pytest.fixture(scope="session")
def services(gateway, tmp_path_factory):
    """MLflow and S3 on that network; the environment that SPARE needs."""
    folder = tmp_path_factory.mktemp("services")
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_server(folder, "spare", gateway))
        allowed = ("--allowed-hosts", f"{gateway}:*")
        uri = stack.enter_context(
            mlflow_server(folder, "sqlite:///mlflow.db", "s3://spare/mlflow", s3, allowed, gateway)
        )
        yield {**s3, "MLFLOW_TRACKING_URI": uri}


@pytest.fixture(scope="session")
def contained(host, services, tmp_path_factory):
    """The pipeline's run under KFP's Docker runner: what each stage told when it was done."""
    return in_docker(host, services, tmp_path_factory.mktemp("docker"))


@pytest.fixture(scope="session")
def champion(contained):
    """The registered model that it promoted."""
    assert contained["promote"]["moved"]
    return contained["register"]["name"]


def inside(host, *command, network="none", check=True):
    """Run a command in the image, held as the pipeline's tasks are held."""
    return docker(host, "run", "--rm", *options(network), "--entrypoint", command[0], TAG, *command[1:], check=check)


def in_docker(host, services, folder):
    """The committed pipeline under KFP's Docker runner: what each stage told when it was done."""
    asked = {
        "root": str(folder), "pipeline": str(SPARE), "arguments": ARGUMENTS, "network": NETWORK,
        "environment": {**services, "SPARE_STORE": STORE, "SPARE_RUN_ID": "docker"},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "image.docker_runner"], input=json.dumps(asked), env={**os.environ, **host}, cwd=ROOT,
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    events = [event for line in done.stdout.splitlines() if (event := read_event(line))]
    return {event["stage"]: event for event in events if event["event"] == "done"}
