"""``spare submit`` and the real ``kfp`` command against a server that speaks the run-service API: what they send."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from pipelines.definition import SPARE, read_definition
from pipelines.submit import submit, wait
from serving.services import free_port
from spare_core.cli.pipeline import submit as command
from spare_core.errors import ClusterRefused, ClusterUnavailable, SettingsError
from tests.support.pipelines_stand_in import compile_stand_in
from tests.support.run_service import Fault, RunService, run_service

TOKEN = "a-planted-token-9c1e"
APP = typer.Typer()
APP.command()(command)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_stand_in(tmp_path_factory.mktemp("compiled") / "stand_in.yaml")


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("KFP_", "KF_PIPELINES_")) or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))


@pytest.fixture
def service() -> Iterator[RunService]:
    with run_service() as running:
        yield running


def spare(service: RunService, *arguments: object) -> Result:
    return CliRunner().invoke(APP, ["--endpoint", service.url, *map(str, arguments)])


def kfp_create(service: RunService, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command of the README."""
    program = str(Path(sys.executable).with_name("kfp"))
    create = ["run", "create", "-e", "spare", "-r", "NAME", "-f", str(file), *arguments]
    return subprocess.run([program, "--endpoint", service.url, *create], capture_output=True, text=True, timeout=60)


def test_spare_submit_sends_what_the_kfp_command_sends(service: RunService, stand_in: Path) -> None:
    arguments = [
        "erase=Neon Lines", "steps=120", "density=0.5", "robust=true", 'keep=["Photo", "No"]', 'options={"lr": 0.001}',
    ]  # fmt: skip
    done = kfp_create(service, stand_in, *arguments)
    assert done.returncode == 0, done.stderr
    theirs = service.created()
    done = spare(service, "-f", stand_in, "--run-name", "NAME", *arguments)
    assert done.exit_code == 0, done.output
    ours = service.created()

    assert ours == theirs
    assert ours["runtime_config"]["parameters"] == {
        "erase": "Neon Lines", "steps": 120, "density": 0.5, "robust": True, "keep": ["Photo", "No"],
        "options": {"lr": 0.001},
    }  # fmt: skip
    executors = ours["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-work"]["secretAsEnv"][0]["secretName"] == "s3"
    assert [one["display_name"] for one in service.experiments] == ["spare"]  # the second found that of the first


def test_a_pipeline_that_asks_nothing_of_the_platform_is_sent_alone(service: RunService, tmp_path: Path) -> None:
    alone = compile_stand_in(tmp_path / "alone.yaml", with_platform=False)
    assert kfp_create(service, alone, "erase=x").returncode == 0
    theirs = service.created()
    submit(alone, {"erase": "x"}, service.url, run_name="NAME")
    assert service.created() == theirs
    assert theirs["pipeline_spec"]["pipelineInfo"]["name"] == "stand-in"


def test_our_own_pipeline_is_sent_as_the_kfp_command_sends_it(service: RunService) -> None:
    values = {1: "0.5", 2: "1", 3: "Neon Lines", 4: "true", 5: "[]", 6: "{}"}
    needed = [
        f"{name}={values[spec.parameter_type]}"
        for name, spec in read_definition(SPARE).parameters.items()
        if not spec.HasField("default_value") and not spec.is_optional
    ]
    done = kfp_create(service, SPARE, *needed)
    assert done.returncode == 0, done.stderr
    theirs = service.created()
    assert spare(service, "--run-name", "NAME", *needed).exit_code == 0
    assert service.created() == theirs
    assert theirs["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "spare"


@pytest.mark.parametrize("text", ["1984", "true", "null", "3e3", "Infinity"])
def test_the_kfp_command_needs_quotes_around_a_text_that_looks_like_another_type(
    text: str, service: RunService, stand_in: Path
) -> None:
    refused = kfp_create(service, stand_in, f"erase={text}")
    assert refused.returncode == 1
    assert service.runs == []
    quoted = kfp_create(service, stand_in, f'erase="{text}"')
    assert quoted.returncode == 0, quoted.stderr
    assert service.created()["runtime_config"]["parameters"] == {"erase": text}

    assert spare(service, "-f", stand_in, f"erase={text}").exit_code == 0
    assert service.created()["runtime_config"]["parameters"] == {"erase": text}


def test_the_kfp_command_takes_lists_as_json_only(service: RunService, stand_in: Path) -> None:
    refused = kfp_create(service, stand_in, "erase=x", "keep=[Photo, Mosaic]")
    assert refused.returncode == 1
    assert "input parameter keep requires type list" in refused.stderr
    assert spare(service, "-f", stand_in, "erase=x", "keep=[Photo, Mosaic]").exit_code == 0
    assert service.created()["runtime_config"]["parameters"]["keep"] == ["Photo", "Mosaic"]


def test_the_result_says_which_run_it_is_and_where_to_see_it(service: RunService, stand_in: Path) -> None:
    options = (
        "--experiment",
        "takedowns",
        "--service-account",
        "spare-run",
        "--pipeline-root",
        "s3://bucket/dev/artifacts",
    )
    done = spare(service, "-f", stand_in, *options, "--json", "erase=x")
    assert done.exit_code == 0, done.output
    (run,) = service.runs
    assert json.loads(done.stdout) == {
        "run_id": run["run_id"],
        "run_name": run["display_name"],
        "pipeline": "stand-in",
        "experiment": "takedowns",
        "url": f"{service.url}/#/runs/details/{run['run_id']}",
        "started": True,
    }
    assert run["display_name"].startswith("stand-in 20")
    assert run["service_account"] == "spare-run"
    assert run["runtime_config"]["pipeline_root"] == "s3://bucket/dev/artifacts"
    assert run["experiment_id"] == service.experiments[0]["experiment_id"]
    assert service.experiments[0]["display_name"] == "takedowns"


def test_none_is_started_beside_one_that_goes_on_if_so_asked(service: RunService, stand_in: Path) -> None:
    """A batch may take longer than the pod that waits for it."""

    def asked(*further: str) -> dict[str, Any]:
        done = spare(service, "-f", stand_in, "--unless-running", "--json", *further, "erase=x")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    first = asked()
    assert first["started"]
    for state in ("PENDING", "RUNNING", "CANCELING", "PAUSED", "RUNTIME_STATE_UNSPECIFIED"):
        service.states = [state]
        found = asked("--wait")
        assert (found["started"], found["run_id"]) == (False, first["run_id"])
    service.states = ["RUNNING"]
    assert asked("--experiment", "another")["started"]
    for state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
        service.states = [state]
        assert asked()["started"]
    assert len(service.runs) == 6


def test_wrong_parameters_are_told_before_anything_is_asked(service: RunService, stand_in: Path) -> None:
    done = spare(service, "-f", stand_in, "eras=x", "steps=many")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert all(part in done.stderr for part in ("did you mean 'erase'?", "steps is 'many'", "erase is missing"))
    assert service.requests == []


def test_without_the_cache_no_task_at_any_depth_takes_an_earlier_result(service: RunService, stand_in: Path) -> None:
    assert spare(service, "-f", stand_in, "--no-cache", "erase=x").exit_code == 0
    sent = service.created()["pipeline_spec"]["pipeline_spec"]
    graphs = [sent["root"]["dag"], sent["components"]["comp-exit-handler-1"]["dag"]]
    options = [task["cachingOptions"] for graph in graphs for task in graph["tasks"].values()]
    assert options == [{}] * 3  # in a protobuf message, false is left out


class TestCredentials:
    def test_both_commands_take_the_token_from_the_environment_and_show_it_nowhere(
        self, stand_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KFP_EXISTING_TOKEN", TOKEN)
        with run_service(token=TOKEN) as service:
            theirs = kfp_create(service, stand_in, "erase=x")
            service.states = ["SUCCEEDED"]
            ours = spare(service, "-f", stand_in, "--wait", "--json", "erase=x")
            assert theirs.returncode == 0, theirs.stderr
            assert ours.exit_code == 0, ours.output
            assert {request.headers["authorization"] for request in service.requests} == {f"Bearer {TOKEN}"}
            assert TOKEN not in theirs.stdout + theirs.stderr + ours.output
            assert TOKEN not in json.dumps([request.body for request in service.requests])

    def test_a_pod_reads_it_from_the_file_that_the_environment_names(
        self, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        with run_service(token=TOKEN) as service:
            with pytest.raises(SettingsError, match=r"cannot read the token in .*No such file"):
                submit(stand_in, {"erase": "x"}, service.url)
            (tmp_path / "token").write_text(TOKEN + "\n")
            submit(stand_in, {"erase": "x"}, service.url)
            assert len(service.runs) == 1

    def test_a_token_that_is_not_accepted_or_missing_is_said_and_not_shown(
        self, stand_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with run_service(token="another") as service:
            for token in ("", TOKEN):
                monkeypatch.setenv("KFP_EXISTING_TOKEN", token)
                done = spare(service, "-f", stand_in, "erase=x")
                assert done.exit_code == 2
                assert "answers 401 Unauthorized: Request header error" in done.stderr
                assert "set KFP_EXISTING_TOKEN to a token that is valid now" in done.stderr
                assert TOKEN not in done.output

    @pytest.mark.parametrize("token", [f"{TOKEN}\r\nX-Other: 1", f"{TOKEN} {TOKEN}", f"{TOKEN}é"])
    def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(
        self, token: str, service: RunService, stand_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KFP_EXISTING_TOKEN", token)
        done = spare(service, "-f", stand_in, "erase=x")
        assert (done.exit_code, done.stderr) == (
            2,
            "error: KFP_EXISTING_TOKEN must hold a token: printable ASCII without spaces\n",
        )

    def test_a_token_that_the_server_repeats_is_not_shown(
        self, service: RunService, stand_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KFP_EXISTING_TOKEN", TOKEN)
        service.faults.append(Fault("healthz", 403, f"no rights:\n Authorization: Bearer {TOKEN}"))
        done = spare(service, "-f", stand_in, "erase=x")
        assert "answers 403 Forbidden: no rights: Authorization: Bearer ***; ask for the right" in done.stderr
        assert TOKEN not in done.output

    def test_a_redirect_is_not_followed_with_the_token(
        self, service: RunService, stand_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KFP_EXISTING_TOKEN", TOKEN)
        with run_service() as elsewhere:
            service.faults.append(Fault("healthz", 302, "", {"Location": f"{elsewhere.url}/dex/auth?state=secret"}))
            done = spare(service, "-f", stand_in, "erase=x")
            assert elsewhere.requests == []
        assert done.exit_code == 2
        assert "answers 302 Found; it sends us elsewhere, perhaps to a page to log in" in done.stderr
        assert "secret" not in done.output

    @pytest.mark.parametrize(
        "url",
        [
            "http://anna:hunter2@{}",
            "http://{}?token=hunter2",
            "http://hunter2@[{}",
            "http://{}/#hunter2",
            "http://{}:99999?hunter2",
        ],
    )
    def test_an_endpoint_with_a_password_is_refused_and_not_shown(
        self, url: str, service: RunService, stand_in: Path
    ) -> None:
        address = url.format(service.url.removeprefix("http://"))
        done = CliRunner().invoke(APP, ["--endpoint", address, "-f", str(stand_in), "erase=x"])
        assert done.exit_code == 2
        assert "must be a URL without user, password, ? and #; set KFP_EXISTING_TOKEN instead" in done.stderr
        assert "hunter2" not in done.output
        assert service.requests == []


@pytest.mark.parametrize(
    "endpoint", ["kubeflow:8888", "ftp://kubeflow", "http://", "http://host:99999", "https://a b", ""]
)
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str, stand_in: Path) -> None:
    with pytest.raises(SettingsError, match="it must be a URL, as in https://"):
        submit(stand_in, {"erase": "x"}, endpoint)


class TestErrors:
    def test_an_endpoint_that_is_down_is_said_in_one_line(self, stand_in: Path) -> None:
        address = f"http://127.0.0.1:{free_port()}"
        done = CliRunner().invoke(APP, ["--endpoint", address, "-f", str(stand_in), "erase=x"])
        assert done.exit_code == 1
        assert done.stderr.startswith(f"error: cannot reach {address}: ")
        assert "Connection refused" in done.stderr
        assert "may have started" not in done.stderr
        assert done.stderr.count("\n") == 1

    def test_an_endpoint_that_never_answers_is_given_up(self, stand_in: Path) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as silent,
            pytest.raises(ClusterUnavailable, match=r"cannot reach .*Read timed out"),
        ):
            submit(stand_in, {"erase": "x"}, f"http://127.0.0.1:{silent.getsockname()[1]}")

    @pytest.mark.parametrize(
        ("status", "exit_code", "advice"),
        [
            (400, 2, "answers 400 Bad Request: because"),
            (403, 2, "ask for the right to create runs there"),
            (404, 2, "check the address"),
            (409, 2, "answers 409 Conflict: because"),
            (429, 1, "try again later"),
            (500, 1, "try again later; it may have started all the same"),
            (503, 1, "try again later"),
        ],
    )
    def test_each_refusal_says_what_to_do(
        self, status: int, exit_code: int, advice: str, service: RunService, stand_in: Path
    ) -> None:
        service.faults.append(Fault("/runs", status, json.dumps({"code": 1, "message": "because"})))
        done = spare(service, "-f", stand_in, "erase=x")
        assert done.exit_code == exit_code
        assert done.stderr.startswith(f"error: {service.url} answers {status}")
        assert advice in done.stderr
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("healthz", "<html>multi_user</html>"), ("healthz", "[]"), ("healthz", "null"), ("healthz", ""),
            ("experiments", "<html>experiments</html>"), ("experiments", "{}"), ("runs", "<html>run_id</html>"),
            ("runs", "{}"), ("runs", '{"run_id": "1", "created_at": "yesterday"}'),
        ],
    )  # fmt: skip
    def test_an_answer_of_something_else_is_no_success(
        self, path: str, body: str, service: RunService, stand_in: Path
    ) -> None:
        service.faults.append(Fault(path, 200, body))
        with pytest.raises(ClusterRefused, match="answers, but not as a KFP API server; check the address"):
            submit(stand_in, {"erase": "x"}, service.url)

    def test_a_server_may_leave_out_that_it_serves_one_user(self, service: RunService, stand_in: Path) -> None:
        service.faults.append(Fault("healthz", 200, "{}"))
        assert submit(stand_in, {"erase": "x"}, service.url)["run_id"] == service.runs[0]["run_id"]

    def test_an_address_without_the_api_is_said(self, service: RunService, stand_in: Path) -> None:
        with pytest.raises(ClusterRefused, match=r"answers 404 Not Found.*; check the address"):
            submit(stand_in, {"erase": "x"}, f"{service.url}/pipeline")

    def test_a_lost_answer_leaves_open_whether_the_run_started(self, service: RunService, stand_in: Path) -> None:
        service.faults.append(Fault("/runs", after=True))
        with pytest.raises(ClusterUnavailable, match="may have started all the same: look for a run named 'mine'"):
            submit(stand_in, {"erase": "x"}, service.url, run_name="mine")
        assert len(service.runs) == 1  # asked once: a second run would erase the same concept twice

    def test_a_cluster_of_several_users_wants_a_namespace(self, stand_in: Path) -> None:
        with run_service(multi_user=True) as service:
            with pytest.raises(ClusterRefused, match="serves several users; name yours with --namespace"):
                submit(stand_in, {"erase": "x"}, service.url)
            assert spare(service, "-f", stand_in, "--namespace", "anna", "erase=x").exit_code == 0
            assert service.experiments[0]["namespace"] == "anna"

    def test_a_cluster_of_one_user_takes_no_namespace(self, service: RunService, stand_in: Path) -> None:
        with pytest.raises(ClusterRefused, match="In single-user mode, ListExperiments cannot filter by namespace"):
            submit(stand_in, {"erase": "x"}, service.url, namespace="anna")

    def test_a_certificate_is_trusted_only_if_the_environment_says_so(
        self, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        certificate = _certificate(tmp_path)
        with run_service(certificate=certificate) as service:
            with pytest.raises(ClusterUnavailable, match="SSL_CERT_FILE names whom to trust"):
                submit(stand_in, {"erase": "x"}, service.url)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            assert submit(stand_in, {"erase": "x"}, service.url)["run_id"] == service.runs[0]["run_id"]


class TestWaiting:
    @pytest.mark.parametrize(("state", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1), ("SKIPPED", 1)])
    def test_the_exit_code_is_that_of_the_run(
        self, state: str, exit_code: int, service: RunService, stand_in: Path
    ) -> None:
        service.states, service.error = [state], "" if state == "SUCCEEDED" else "task distill:\nout of memory"
        done = spare(service, "-f", stand_in, "--run-name", "mine", "--wait", "erase=x")
        assert done.exit_code == exit_code
        assert done.stdout == f"mine: {state}{': task distill: out of memory' if service.error else ''}\n"
        url = f"{service.url}/#/runs/details/{service.runs[0]['run_id']}"
        assert done.stderr.splitlines() == [f"mine: {service.runs[0]['run_id']}", url, state]
        done = spare(service, "-f", stand_in, "--wait", "--json", "erase=x")
        assert json.loads(done.stdout)["state"] == state

    def test_each_state_is_told_once_and_a_server_that_restarts_is_waited_for(
        self, service: RunService, stand_in: Path
    ) -> None:
        run_id = submit(stand_in, {"erase": "x"}, service.url)["run_id"]
        service.states = ["PENDING", "PENDING", "RUNNING", "RUNNING", "CANCELING", "CANCELED"]
        service.faults += [Fault("/runs/", 503, times=5), Fault("/runs/", times=6)]
        states: list[str] = []
        assert wait(run_id, service.url, None, states.append, every=0.01) == {"state": "CANCELED", "error": ""}
        assert states == ["PENDING", "RUNNING", "CANCELING", "CANCELED"]

    def test_a_server_that_stays_away_is_given_up_and_the_run_is_named(
        self, service: RunService, stand_in: Path
    ) -> None:
        run_id = submit(stand_in, {"erase": "x"}, service.url)["run_id"]
        service.faults.append(Fault("/runs/", 503))
        with pytest.raises(ClusterUnavailable, match=f"run {run_id} may go on, but .* answers 503"):
            wait(run_id, service.url, every=0.01)

    def test_a_run_that_is_not_there_is_refused(self, service: RunService) -> None:
        with pytest.raises(ClusterRefused, match="answers 404 Not Found: Run gone not found"):
            wait("gone", service.url)


def _certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody signed."""
    file = folder / "server.pem"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*request, *subject, "-keyout", str(file), "-out", f"{file}.crt"], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file
