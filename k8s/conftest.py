"""What the overlays render to and what the pipelines compile to, each made once, and how to look into both."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent
OVERLAYS = ("dev", "prod", "eks", "argo")
POD_OWNERS = {"Deployment", "Job", "CronJob", "CronWorkflow"}


@functools.cache
def render(overlay):
    if not shutil.which("kubectl"):
        pytest.fail("kubectl is not here; it renders the overlays: https://kubernetes.io/docs/tasks/tools")
    done = subprocess.run(["kubectl", "kustomize", HERE / "overlays" / overlay], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # What people create by hand is held to the same, under a name, since the validators know no generateName.
    by_hand = [path.read_text() for path in sorted((HERE / "examples").glob("*.yaml"))]
    return "---\n".join([done.stdout, *(re.sub(r"generateName: (\S+)-", r"name: \1", text) for text in by_hand)])


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request):
    return render(request.param)


@pytest.fixture(scope="module")
def objects(rendered):
    return list(yaml.safe_load_all(rendered))


@pytest.fixture(scope="module")
def prod():
    return list(yaml.safe_load_all(render("prod")))


@pytest.fixture(scope="module")
def compiled():
    """The pipelines as they are submitted: specification and what they ask of the platform."""
    return {
        path.stem: list(yaml.safe_load_all(path.read_text())) for path in sorted((ROOT / "pipelines").glob("*.yaml"))
    }


def executors(compiled):
    for _, platforms in compiled.values():
        yield from platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()


def images(compiled):
    """What the pipelines' tasks run in."""
    return {
        executor["container"]["image"]
        for specification, _ in compiled.values()
        for executor in specification["deploymentSpec"]["executors"].values()
    }


def named(objects, kind):
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def pods(objects):
    """Pod specifications with their labels, by what they belong to."""
    for item in objects:
        if item["kind"] == "CronWorkflow":
            workflow = item["spec"]["workflowSpec"]
            (template,) = workflow["templates"]
            pod = {**workflow, "containers": [template["container"]]}
            yield "CronWorkflow", pod, template["metadata"]["labels"]
        elif item["kind"] in POD_OWNERS:
            spec = item["spec"]["jobTemplate"]["spec"] if item["kind"] == "CronJob" else item["spec"]
            template = spec["template"]
            yield f"{item['kind']} {item['metadata']['name']}", template["spec"], template["metadata"]["labels"]


def containers(objects):
    for owner, pod, _ in pods(objects):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield owner, pod, container
