"""What a cluster would be given is what its API takes, and checkov lets it pass: ``make k8s-test``."""

import copy
import json
import subprocess

import jsonschema
import pytest
import yaml

from k8s.conftest import HERE, ROOT

SCHEMAS = ROOT.parent / "shared" / "crds"
KUBERNETES = ("1.30.0", "1.34.0")
"""The oldest release that is still seen in clusters, and a recent one."""
ARGO = "argoproj.io/v1alpha1"
BUILT_IN = {"v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1", "rbac.authorization.k8s.io/v1",
            "admissionregistration.k8s.io/v1"}  # fmt: skip


@pytest.mark.parametrize("release", KUBERNETES)
def test_every_object_is_one_that_kubernetes_takes(objects, release, tmp_path):
    own = [item for item in objects if item["apiVersion"] in BUILT_IN]
    assert len(own) > 30
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(own))
    command = [ROOT / ".venv-tools/bin/kubernetes-validate", "--strict", "-k", release, tmp_path / "objects.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARN" not in done.stdout + done.stderr


def test_every_custom_resource_is_one_of_its_published_schema(objects):
    if not SCHEMAS.is_dir():
        pytest.skip("the published schemas of custom resources are not here")
    definitions = [yaml.safe_load(path.read_text())["spec"] for path in SCHEMAS.glob("*.yaml")]
    served = {
        (f"{definition['group']}/{version['name']}", definition["names"]["kind"]): version["schema"]["openAPIV3Schema"]
        for definition in definitions
        for version in definition["versions"]
        if version["served"]
    }
    custom = [item for item in objects if item["apiVersion"] not in {*BUILT_IN, ARGO}]
    for item in custom:
        schema = strict(copy.deepcopy(served[item["apiVersion"], item["kind"]]))
        jsonschema.validate(item, schema, cls=jsonschema.Draft202012Validator)


def strict(schema, top=True):
    """The schema, but what it does not know is refused, as `kubectl apply --validate=strict` does."""
    if not isinstance(schema, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return schema
    if "properties" in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    if schema.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if "(?i)" in schema.get("pattern", ""):  # Go's, which may stand anywhere
        schema["pattern"] = "(?i)" + schema["pattern"].replace("(?i)", "")
    for name, part in schema.get("properties", {}).items():
        if not (top and name == "metadata"):
            schema["properties"][name] = strict(part, top=False)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            schema[name] = strict(schema[name], top=False)
    return schema


def test_checkov_has_nothing_to_say(rendered, tmp_path):
    (tmp_path / "objects.yaml").write_text(rendered)
    command = [ROOT / ".venv-tools/bin/checkov", "--config-file", HERE / "checkov.yaml", "--output", "json",
               "--file", tmp_path / "objects.yaml"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["results"]["failed_checks"] == []
    assert told["summary"]["passed"] > 300


def test_each_check_that_checkov_skips_has_its_reason():
    lines = (HERE / "checkov.yaml").read_text().splitlines()
    skipped = [number for number, line in enumerate(lines) if "- CKV" in line]
    assert skipped
    assert all(lines[number - 1].lstrip().startswith("#") for number in skipped)
