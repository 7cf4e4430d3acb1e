"""The image, built here and held as a cluster would hold it: ``make docker-test``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from image.build import ROOT, VERSION, bill_of_materials
from image.conftest import ARGUMENTS, NETWORK, STORE, TAG, inside
from image.engine import docker
from spare_core.evaluation.report_files import read_report
from tests.test_pins import REQUIREMENTS, normal, pins


def test_hadolint_has_nothing_to_say():
    told = subprocess.run([ROOT / ".venv-tools/bin/hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, "")


def test_its_labels_user_and_entry_point(host):
    config = json.loads(docker(host, "image", "inspect", TAG).stdout)[0]["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["spare"]
    assert labels["version"] == VERSION
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert docker(host, "run", "--rm", "--read-only", "--network", "none", TAG).stdout.split()[:2] == [
        "Usage:",
        "spare",
    ]


def test_it_holds_no_compiler_no_installer_no_cache_and_no_test(host):
    programs = "for name in cc gcc g++ c++ clang ld as make cmake pip pip3 git curl wget; do command -v $name; done"
    assert inside(host, "sh", "-c", f"{programs}; true").stdout == ""
    names = ("*.a", "*.whl", "tests", "pip", ".git")
    leftovers = " -o ".join(f"-name '{name}'" for name in names) + " -o -path '/build*' -o -path '/var/lib/apt/lists/*'"
    found = inside(host, "sh", "-c", rf"find / -xdev \( {leftovers} \) -print 2>/dev/null; true").stdout.split()
    assert [path for path in found if not path.startswith("/var/lib/apt/lists/partial")] == []


def test_it_holds_no_secret(host):
    # Neither a key, nor what the build was given for a while: this machine's authorities and pip's configuration.
    keys = r"grep -rlE --include='*' -e '-----BEGIN [A-Z ]*PRIVATE KEY-----$' /etc /srv /opt/spare/bin /home /var; true"
    assert inside(host, "sh", "-c", f"{keys} 2>/dev/null").stdout == ""
    assert inside(host, "sh", "-c", "ls /etc/pip.conf /run/secrets 2>/dev/null; true").stdout == ""
    environment = inside(host, "env").stdout
    assert not re.search("(?i)password|secret|token|_key", environment)
    history = docker(host, "history", "--no-trunc", "--format", "{{.CreatedBy}}", TAG).stdout
    assert not re.search("(?i)password|AKIA|https?://[^ ]*@", history)
    # What Debian's package trusts, and nothing else.
    trusted = (
        "cat /usr/share/ca-certificates/mozilla/*.crt | grep -c BEGIN; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt"
    )
    offered, taken = inside(host, "sh", "-c", trusted).stdout.split()
    assert offered == taken


def test_it_holds_what_the_lock_says(host):
    listing = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
    there = dict(line.split("==") for line in inside(host, "python3", "-c", listing).stdout.split())
    assert there.pop("spare-unlearning") == VERSION
    assert {normal(name): {version} for name, version in there.items()} == pins(REQUIREMENTS / "image-cpu.txt")


def test_the_pipeline_that_the_nightly_batch_submits_is_in_it_and_names_it(host):
    (job,) = (
        document
        for document in yaml.safe_load_all((ROOT / "k8s" / "base" / "takedown.yaml").read_text())
        if document["kind"] == "CronJob"
    )
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (file,) = (word.removeprefix("--file=") for word in container["args"] if word.startswith("--file="))
    assert {line.strip() for line in inside(host, "grep", "image: ", file).stdout.splitlines()} == {f"image: {TAG}"}


def test_the_bill_of_materials_lists_debians_packages_and_pythons(host, tmp_path):
    bill_of_materials(host, TAG, tmp_path / "bill.json")
    listed = {
        package["name"]: package.get("versionInfo")
        for package in json.loads((tmp_path / "bill.json").read_text())["packages"]
    }
    assert listed["spare-unlearning"] == VERSION
    assert listed["torch"].startswith("2.")
    debian = inside(host, "dpkg-query", "-W", "-f", "${Version}", "libc6").stdout
    assert listed["libc6"] == debian


def test_a_container_is_not_root_and_writes_only_where_it_may(host):
    assert inside(host, "id", "-u").stdout == "65532\n"
    for folder in ("/", "/opt/spare", "/srv", "/etc", "/var"):
        refused = inside(host, "touch", f"{folder}/x", check=False)
        assert "Read-only file system" in refused.stderr
    assert inside(host, "sh", "-c", "touch /tmp/x /var/cache/spare/x && echo written").stdout == "written\n"


def test_a_container_reaches_mlflow_and_s3_and_nothing_else(host, services):
    probe = (
        "import socket, sys\n"
        "for target in sys.argv[1:]:\n"
        "    host, port = target.rsplit(':', 1)\n"
        "    try:\n"
        "        socket.create_connection((host, int(port)), 3).close(); print('reached')\n"
        "    except OSError: print('lost')"
    )
    own = [services[name].removeprefix("http://") for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")]
    # A host of the internet by number and one by name; TEST-NET's would be lost anywhere.
    others = ["1.1.1.1:443", "pypi.org:443"]
    told = inside(host, "python3", "-c", probe, *own, *others, network=NETWORK).stdout.split()
    assert told == ["reached", "reached", "lost", "lost"]


def in_subprocesses(services, folder):
    """The same by `spare run`, the champion's next version: what each stage told when it was done."""
    spare = [sys.executable, "-P", "-m", "spare_core.cli", "run", "--json", "--output", str(folder)]
    done = subprocess.run(
        [*spare, *(f"{name}={value}" for name, value in ARGUMENTS.items())],
        env={**os.environ, **services, "SPARE_STORE": STORE}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["results"]


def test_the_pipeline_gives_the_figures_of_the_subprocess_runner(contained, services, tmp_path):
    alone = in_subprocesses(services, tmp_path)
    assert contained.keys() == alone.keys()
    ours, theirs = (read_report(Path(told["register"]["evaluation"])) for told in (contained, alone))
    assert ours["judge"] == theirs["judge"]
    for side in ("base", "adapted"):
        for figure in ("ua", "ira", "cra"):
            # Of 240 pictures one may look the other way on another kind of CPU, not here: the same wheel on the same.
            assert ours[side][figure] == pytest.approx(theirs[side][figure], abs=1e-9)
        assert ours[side]["fid"] == pytest.approx(theirs[side]["fid"], rel=1e-2)
    for figure in ("residual", "mean_drift"):
        assert ours[figure] == pytest.approx(theirs[figure], rel=1e-3)
