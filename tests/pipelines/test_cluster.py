"""What stands between us and a KFP cluster: the token, and everything that its API may answer."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.submit import submit
from serving.services import free_port
from spare_core.errors import ClusterRefused, ClusterUnavailable, SettingsError
from tests.support.run_service import Fault, RunService, run_service
from tests.support.submitting import APP, TOKEN, kfp_create, spare

pytest_plugins = ("tests.support.cluster_fixtures",)
pytestmark = pytest.mark.usefixtures("no_settings_of_this_machine")


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
