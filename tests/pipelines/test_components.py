"""Components are thin and documented, and the committed pipeline is what its source compiles to."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.readme import ROOT, component, names, readme
from pipelines.definition import BUNDLE, OWN, SPARE, TAKEDOWN, read_definition
from pipelines.platform import PROFILES
from spare_core.workflow.secrets import SECRETS

STAGES = ["validate", "prepare", "timesteps", "saliency", "distill", "evaluate", "register", "gate", "promote"]
BUNDLES = ["collect", "compose", "evaluate", "register", "gate", "promote"]
TAKEDOWNS = ["plan", "take-down", "gather", "compose", "evaluate", "register", "gate", "promote"]
ENDS = {"spare": "finish", "bundle": "finish", "takedown": "close"}
ON_A_GPU = {"take-down", "prepare", "timesteps", "saliency", "distill", "compose", "evaluate"}


def compiled(output: Path, *options: str, image: str = "", pipeline: str = "spare") -> list[dict[str, Any]]:
    """The documents that a pipeline's source compiles to.

    By a fresh Python: KFP looks through all imported modules for each line of a pipeline, which takes five seconds in a
    fork that has torch, half a second without.
    """
    command = [sys.executable, "-W", "ignore", "-m", f"pipelines.{pipeline}", "--output", str(output), *options]
    done = subprocess.run(
        command, cwd=ROOT.parent, env={**os.environ, "SPARE_IMAGE": image}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(output.read_text()))


def executors(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The containers of the pipeline, by the name of their component."""
    found = documents[0]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in found.items()}


def platform(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """What is asked of Kubernetes, by the name of the component."""
    found = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): asked for name, asked in found.items()}


def test_every_stage_is_a_component() -> None:
    tasks = {*STAGES, *BUNDLES, *TAKEDOWNS, *ENDS.values()}
    assert names() == sorted(name.replace("-", "_") for name in tasks)


@pytest.mark.parametrize("name", names())
def test_a_readme_is_what_its_component_says(name: str) -> None:
    """Stale? python -m components.readme"""
    assert (ROOT / name / "README.md").read_text() == readme(name)
    rows = [line for line in readme(name).splitlines() if line.startswith("| `")]
    assert all(len(line.split("|")[3].strip()) > 5 for line in rows), "an input or output is not described"


@pytest.mark.parametrize("name", names())
def test_a_component_is_thin(name: str) -> None:
    """Nothing heavy at module level, nothing decided, one call of the core."""
    tree = ast.parse((ROOT / name / "component.py").read_text())
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported <= {"typing", "kfp", "pipelines.platform"}
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    inside = list(ast.walk(function))
    assert not any(isinstance(node, ast.If | ast.IfExp | ast.Try | ast.While) for node in inside)
    used = {ast.unparse(node) for node in inside if isinstance(node, ast.Attribute)}
    assert {one for one in used if one.startswith("workflow.") and "(" not in one} <= {
        f"workflow.{name}", "workflow.figures", "workflow.metadata", "workflow.write_metrics",
    }  # fmt: skip
    assert component(name).component_spec.implementation.container.command[0] == "sh"


@pytest.mark.parametrize("committed", OWN, ids=lambda path: path.stem)
def test_the_committed_pipeline_is_what_its_source_compiles_to(tmp_path: Path, committed: Path) -> None:
    """Stale? make pipelines"""
    written = list(yaml.safe_load_all(committed.read_text()))
    assert compiled(tmp_path / "own.yaml", pipeline=committed.stem) == written


def test_nothing_is_installed_when_a_task_starts(tmp_path: Path) -> None:
    for committed in OWN:
        for container in executors(list(yaml.safe_load_all(committed.read_text()))).values():
            assert "pip install" not in " ".join(container["command"])


def test_the_image_is_named_once(tmp_path: Path) -> None:
    containers = executors(compiled(tmp_path / "own.yaml", image="registry.example.org/spare:7")).values()
    assert {container["image"] for container in containers} == {"registry.example.org/spare:7"}


@pytest.mark.parametrize(("pipeline", "stages"), [("spare", STAGES), ("bundle", BUNDLES), ("takedown", TAKEDOWNS)])
@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_compiles_and_asks_for_what_it_says(
    tmp_path: Path, profile: str, pipeline: str, stages: list[str]
) -> None:
    documents = compiled(tmp_path / "own.yaml", "--profile", profile, pipeline=pipeline)
    containers, asked = executors(documents), platform(documents)
    tasks = {*stages, ENDS[pipeline]}
    assert {*containers} == tasks
    for name in ON_A_GPU & {*stages}:
        accelerator = containers[name]["resources"].get("accelerator")
        assert (accelerator is not None) == (profile == "gpu")
        mounts = {mount["mountPath"]: mount for mount in asked[name]["emptyDirMounts"]}
        assert mounts.keys() == {"/dev/shm", "/tmp"}
        assert mounts["/dev/shm"]["medium"] == "Memory"
        labels = {"app.kubernetes.io/part-of": "spare"}
        queue = {"kueue.x-k8s.io/queue-name": "spare"} if profile == "gpu" else {}
        assert asked[name]["podMetadata"]["labels"] == {**labels, **queue}
    for name in tasks - ON_A_GPU:
        assert "accelerator" not in containers[name]["resources"], "checked, registered and judged without a GPU"
        assert [mount["mountPath"] for mount in asked[name]["emptyDirMounts"]] == ["/tmp"]
    for each in asked.values():
        assert int(each["activeDeadlineSeconds"]) > 0
        assert {secret["secretName"] for secret in each["secretAsVolume"]} == {*SECRETS}
        assert "secretAsEnv" not in each, "Kubernetes would expand it in what people wrote"


def tasks(committed: Path) -> dict[str, dict[str, Any]]:
    """Every task of a committed pipeline."""
    (document, _) = yaml.safe_load_all(committed.read_text())
    dags = [document["root"], *document["components"].values()]
    return {name: task for dag in dags for name, task in dag.get("dag", {}).get("tasks", {}).items()}


PIPELINES = pytest.mark.parametrize(
    ("committed", "stages"),
    [(SPARE, STAGES), (BUNDLE, BUNDLES), (TAKEDOWN, TAKEDOWNS)],
    ids=["spare", "bundle", "takedown"],
)


@PIPELINES
def test_what_acts_outside_is_never_cached_and_what_computes_is(committed: Path, stages: list[str]) -> None:
    cached = {name for name, task in tasks(committed).items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached & {*stages, ENDS[committed.stem]} == (ON_A_GPU - {"take-down"}) & {*stages}


@PIPELINES
def test_what_may_be_repeated_is_with_patience_and_what_is_decided_is_not(committed: Path, stages: list[str]) -> None:
    found = tasks(committed)
    repeated = {name for name, task in found.items() if task.get("retryPolicy", {}).get("maxRetryCount")}
    outside = {"register", "promote", "gather", ENDS[committed.stem]}
    assert repeated == (ON_A_GPU | outside) & {*stages, ENDS[committed.stem]}
    assert all(found[name]["retryPolicy"]["backoffDuration"] != "0s" for name in repeated)


@pytest.mark.parametrize("committed", [SPARE, BUNDLE, TAKEDOWN], ids=lambda path: path.stem)
def test_kfps_own_command_compiles_a_pipeline_by_its_path(committed: Path, tmp_path: Path) -> None:
    """From anywhere, as users of KFP do; for another image or profile there is ``python -m pipelines.NAME``."""
    kfp = Path(sys.executable).with_name("kfp")
    source, output = committed.with_suffix(".py"), tmp_path / "own.yaml"
    command = [kfp, "dsl", "compile", "--py", source, "--output", output]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert output.read_text() == committed.read_text()


@PIPELINES
def test_no_try_is_cut_off_by_the_deadline_of_all(committed: Path, stages: list[str]) -> None:
    """``backoffMaxDuration`` becomes Argo's ``maxDuration``, which is counted from the first try's start."""
    seconds = {
        name: int(each["activeDeadlineSeconds"])
        for name, each in platform(list(yaml.safe_load_all(committed.read_text()))).items()
    }
    for name, task in tasks(committed).items():
        retry = task.get("retryPolicy", {})
        if tries := retry.get("maxRetryCount", 0):
            first, factor = int(retry["backoffDuration"].rstrip("s")), retry["backoffFactor"]
            pauses = sum(first * factor**i for i in range(tries))
            key = task["componentRef"]["name"].removeprefix("comp-")
            assert int(retry["backoffMaxDuration"].rstrip("s")) >= (tries + 1) * seconds[key] + pauses, name


@pytest.mark.parametrize(
    ("committed", "expected"), [(SPARE, {"model", "erase", "surrogate"}), (BUNDLE, {"model"}), (TAKEDOWN, {"model"})]
)
def test_a_command_line_knows_the_pipelines_parameters(committed: Path, expected: set[str]) -> None:
    takes = read_definition(committed).parameters
    needed = {name for name, spec in takes.items() if not spec.is_optional and not spec.HasField("default_value")}
    assert needed == expected
