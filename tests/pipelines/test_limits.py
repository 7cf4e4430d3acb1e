"""What one batch makes of a cluster's objects stays below what they may be: the status of a workflow, an argument."""

from __future__ import annotations

import base64
import gzip
import json
import random
from typing import Any

import pytest
import yaml

from pipelines.definition import TAKEDOWN
from spare_core.takedown.work import MOST

# Argo ends a workflow whose compressed nodes have 1 MiB, where they are not offloaded to a database, which KFP does not
# ask for (Argo's workflow/hydrator and persist/sqldb).
ARGO_BYTES = 2**20
# MAX_ARG_STRLEN of Linux: KFP's driver hands all of a task's inputs to its launcher as one argument.
ARGUMENT_BYTES = 128 * 1024
ID_CHARACTERS = 100
TRIES = 3


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    """What the compiled pipeline says of one request's task."""
    pipeline, platforms = yaml.safe_load_all(TAKEDOWN.read_text())
    component = pipeline["components"]["comp-take-down"]
    label = component["executorLabel"]
    platform = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]
    (loop,) = (
        part["dag"]["tasks"]["take-down"] for part in pipeline["components"].values()
        if "take-down" in part.get("dag", {}).get("tasks", {})
    )  # fmt: skip
    container = pipeline["deploymentSpec"]["executors"][label]["container"]
    return {"component": component, "container": container, "platform": platform, "loop": loop}


def pod_patch(task: dict[str, Any], request_id: str, execution: int) -> str:
    """What KFP's driver (backend/src/v2/driver, initPodSpecPatch) makes of a task, as Argo keeps it: about as much."""
    container, platform = task["container"], task["platform"]
    inputs = {"batch": "requests/" + "0" * 64 + ".json", "request_id": request_id}
    outputs = {"parameters": {"Output": {"outputFile": "/tmp/kfp/outputs/Output"}}}
    handed = json.dumps({"inputs": {"parameterValues": inputs}, "outputs": outputs})
    launcher = ["/kfp-launcher/launch", "--executor_type", "container", "--pipeline_name", "spare-takedown", "--run_id",
                "3f2c8f5e-1d1c-4d59-9e6b-6f1b2a9d9c11", "--execution_id", str(execution), "--executor_input", handed,
                "--component_spec", json.dumps(task["component"]), "--pod_name", "$(KFP_POD_NAME)", "--"]  # fmt: skip
    rest = json.dumps(platform)  # environment, volumes, tolerations and so on
    return json.dumps({"command": [*launcher, *container["command"]], "args": container["args"], "platform": rest})


def nodes(task: dict[str, Any], count: int) -> bytes:
    """The nodes that Argo's status holds of so many requests, each of whose tasks was tried as often as it may be."""
    chance = random.Random(0)
    found: dict[str, Any] = {}

    def add(name: str, kind: str, inputs: dict[str, Any]) -> None:
        number = chance.getrandbits(32)
        times = [f"2026-11-26T0{chance.randint(2, 9)}:{chance.randint(10, 59)}:{chance.randint(10, 59)}Z" for _ in "ab"]
        found[f"spare-takedown-x7k2p-{number}"] = {
            "id": f"spare-takedown-x7k2p-{number}", "name": name, "displayName": name.rpartition(".")[2], "type": kind,
            "templateScope": "local/spare-takedown-x7k2p", "phase": "Succeeded", "startedAt": times[0],
            "finishedAt": times[1], "children": [f"spare-takedown-x7k2p-{chance.getrandbits(32)}"],
            "resourcesDuration": {"cpu": chance.randint(0, 99_999), "memory": chance.randint(0, 9_999_999)},
            "hostNodeName": f"gpu-node-{chance.randint(0, 15)}.example.internal",
            "inputs": {"parameters": [{"name": name, "value": value} for name, value in inputs.items()]},
        }  # fmt: skip

    for each in range(count):
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        request_id = f"T-{each:06d}-" + "".join(chance.choices(letters, k=ID_CHARACTERS - 9))
        patch = pod_patch(task, request_id, 10_000 + 4 * each)
        where = f"spare-takedown-x7k2p.root.exit-handler-1.erase-each.for-loop-1.iteration-iterations({each}:{each})"
        described = {key: json.dumps(value) for key, value in task.items()}
        add(where, "DAG", {"iteration-index": str(each)})
        add(f"{where}.iteration-item-driver", "Pod", {"component": described["component"], "task": described["loop"]})
        add(f"{where}.iteration-item", "DAG", {"condition": "true"})
        add(f"{where}.iteration-item.take-down-driver", "Pod", described)
        add(f"{where}.iteration-item.take-down", "DAG", {"pod-spec-patch": patch})
        add(f"{where}.iteration-item.take-down.executor", "Retry", {"pod-spec-patch": patch})
        for number in range(TRIES):
            add(f"{where}.iteration-item.take-down.executor({number})", "Pod", {"pod-spec-patch": patch})
    return json.dumps(found, separators=(",", ":")).encode()


def test_a_batch_as_large_as_it_may_be_fits_into_argos_workflow(task: dict[str, Any]) -> None:
    size = len(base64.b64encode(gzip.compress(nodes(task, MOST))))
    assert size < 0.9 * ARGO_BYTES
    assert len(base64.b64encode(gzip.compress(nodes(task, 4 * MOST)))) > ARGO_BYTES, "no limit without need"


def test_the_ids_of_a_batch_fit_into_an_argument() -> None:
    ids = json.dumps(["T-" + "x" * (ID_CHARACTERS - 2)] * MOST)
    escaped = json.dumps(json.dumps({"requests": ids}))  # a parameter, in the executor's input
    assert len(escaped) < ARGUMENT_BYTES / 2
