"""``spare registry``: exit codes, one line for an error, JSON alone on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from serving.services import free_port
from spare_core.cli.registry import app
from spare_core.evaluation.gate import DEFAULT, POLICIES
from spare_core.models.unet import UNetDenoiser
from spare_core.registry.client import connect
from spare_core.store import open_store
from tests.support.mlflow_servers import Server
from tests.support.registrations import register_one

pytest_plugins = ("tests.support.mlflow_fixtures",)


@pytest.fixture(autouse=True)
def server(mlflow_s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SPARE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    with mlflow_s3_server.used() as used:
        yield used


def registry(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_from_the_first_promotion_to_the_history(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    store = open_store(str(tmp_path / "store"))
    for number in (1, 2):
        version = register_one(tmp_path / str(number), denoiser, "Command line 🎨", number, store=store)
    name = version.name
    listed = next(one for one in json.loads(registry("list", "--json").stdout)["models"] if one["name"] == name)
    assert listed == {"name": name, "concept": "Command line 🎨", "aliases": {"candidate": 2}, "latest": 2}

    promoted = json.loads(registry("promote", name, 1, "--by", "anna", "--json").stdout)
    assert (promoted["aliases"], promoted["entry"]) == ({"champion": 1, "previous": None}, 1)
    done = registry("promote", name, 2, "--reason", "better figures")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{name}: champion 2, previous 1 (entry 3 of the log)\n"
    assert registry("rollback", name).stdout == f"{name}: champion 1, previous 2 (entry 5 of the log)\n"

    shown = registry("show", name).stdout
    assert "aliases: candidate 2, champion 1, previous 2" in shown
    assert "version 2: gate passed; ua.after 1 ira.after 1 cra.after 0.982" in shown
    told = registry("history", name).stdout.splitlines()
    assert len(told) == 6
    assert "better figures" in told[2]
    proof = registry("history", name, "--verify").stdout
    assert proof.startswith(f"{name}: 6 entries, whole up to ")
    assert "2 cited verdict(s) as they were written; the aliases are as logged" in proof
    entries = json.loads(registry("history", name, "--json").stdout)["entries"]
    assert [entry["kind"] for entry in entries] == ["promote", "finish"] * 2 + ["rollback", "finish"]
    assert [entry["actor"] for entry in entries][:2] == ["anna", "anna"]


def test_a_refusal_of_the_gate_exits_with_3_and_force_wants_a_reason(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    name = register_one(tmp_path, denoiser, "Refused", good=False).name
    refused = registry("promote", name, 1)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (3, "", 1)
    assert "UA, lower 95 % bound: 0" in refused.stderr
    unfounded = registry("promote", name, 1, "--force")
    assert (unfounded.exit_code, "needs a reason" in unfounded.stderr) == (2, True)
    forced = registry("promote", name, 1, "--force", "--reason", "court order")
    assert forced.exit_code == 0
    assert "marked for ever" in forced.stdout
    assert "FORCED by" in registry("show", name).stdout
    assert (
        "promote version 1 BY FORCE (champion –, previous – -> champion 1, previous –); court order"
        in registry("history", name).stdout
    )


def test_the_policy_in_force_is_the_one_given_or_the_environments(
    tmp_path: Path, denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = register_one(tmp_path, denoiser, "Stricter").name
    values = yaml.safe_load(POLICIES[DEFAULT].read_text())
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump({**values, "min_ua": 0.99}))
    monkeypatch.setenv("SPARE_POLICY", "strict.yaml")
    assert registry("promote", name, 1).exit_code == 3
    assert registry("promote", name, 1, "--policy", "default").exit_code == 0
    missing = registry("promote", name, 1, "--policy", "nowhere.yaml")
    assert (missing.exit_code, "nowhere.yaml" in missing.stderr) == (2, True)
    connect().delete_registered_model_alias(name, "champion")
    proof = registry("history", name, "--verify")
    assert (proof.exit_code, proof.stdout) == (1, "")
    assert "the aliases were moved outside SPARE" in proof.stderr


def test_a_damaged_log_exits_with_1(tmp_path: Path, denoiser: UNetDenoiser) -> None:
    name = register_one(tmp_path, denoiser, "Damaged").name
    assert registry("promote", name, 1).exit_code == 0
    [first] = (tmp_path / "store").rglob("00000001.json")
    first.write_text(first.read_text().replace("promote", "rollback"))
    for command in (["history", name], ["show", name], ["promote", name, 1], ["rollback", name]):
        done = registry(*command)
        assert (done.exit_code, done.stdout) == (1, ""), command
        assert "entry 2 of the promotion log" in done.stderr


def test_bad_input_is_one_line_and_exits_with_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = [
        (["show", "../../x"], "no name of ours"),
        (["show", "spare.canvas.not-there"], "not found"),
        (["promote", "spare.canvas.not-there", 1], "not found"),
        (["rollback", "spare.canvas.not-there"], "not found"),
        (["history", "spare.canvas.a' or '1'='1"], "no name of ours"),
    ]
    for arguments, message in cases:
        done = registry(*arguments)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), (arguments, done.output)
        assert message in done.stderr, (arguments, done.stderr)
    monkeypatch.delenv("SPARE_STORE")
    assert registry("history", "spare.canvas.not-there").exit_code == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    unset = registry("list")
    assert (unset.exit_code, "MLFLOW_TRACKING_URI is not set" in unset.stderr) == (2, True)
    assert not (tmp_path / "mlruns").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_that_is_down_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    done = registry("list")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "cannot be reached" in done.stderr


def test_help_is_there_for_each_command() -> None:
    for command in ("list", "show", "promote", "rollback", "history"):
        done = registry(command, "--help")
        assert (done.exit_code, "--json" in done.stdout) == (0, True)
