"""The image server swaps the champion's adapter on a live pipeline: no restart, no picture of two adapters; it draws
with nothing that was not promoted, and stays alive however many ask of it however much."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient

from serving.following import FollowingPipeline, NotReady
from serving.server import signed
from serving.services import free_port, mlflow_server, process, wait_for
from spare_core.evaluation.gate import Policy
from spare_core.models.unet import UNetDenoiser
from spare_core.registry import promotions
from spare_core.registry.registering import register
from spare_core.registry.tracking import stage_run
from spare_core.store import Store, open_store
from tests.support.adapters import load_tiny
from tests.support.mlflow_servers import Server
from tests.support.registrations import register_one, write_adapter

SECRET = "signs-the-webhooks"
TOKEN = "may-have-pictures-drawn"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
WAITING = 4
ASKED = {"prompt": "a cat", "seed": 3, "steps": 2}
SLOW = {**ASKED, "steps": 100}


class Site(NamedTuple):
    """A running server, and what it follows."""

    name: str
    store: Store
    url: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, sd1_dir: Path, sd2_dir: Path, denoiser: UNetDenoiser
) -> Iterator[Site]:
    """Versions 1 and 2 are adapters of the tiny model; no champion yet. The registry is asked once in a minute."""
    folder = tmp_path_factory.mktemp("serve")
    # Here the webhooks' receiver is this machine, and they are made after the first events they are for.
    allow = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
             "MLFLOW_WEBHOOK_CACHE_TTL": "0"}  # fmt: skip
    with ExitStack() as stack:
        server = Server(stack.enter_context(mlflow_server(folder, "sqlite:///x.db", str(folder / "artifacts"), allow)))
        stack.enter_context(server.used())
        store = open_store(str(folder / "store"))
        for number in (1, 2):
            version = register_one(folder / str(number), denoiser, "Followed", number, store=store)
        port = free_port()
        (folder / "token").write_text(TOKEN + "\n")
        (folder / "secret").write_text(SECRET)
        command = [sys.executable, "-P", "-m", "serving.server", version.name, "--base", str(sd1_dir), "--port",
                   str(port), "--every", "60", "--waiting", str(WAITING), "--store", store.uri, "--token-file",
                   str(folder / "token"), "--webhook-secret-file", str(folder / "secret")]  # fmt: skip
        environment = {**server.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
        running = stack.enter_context(process(command, folder / "serve.log", environment, folder))
        url = f"http://127.0.0.1:{port}"
        wait_for(running, f"{url}/live", folder / "serve.log")
        for event in ("created", "deleted"):
            MlflowClient().create_webhook(
                f"serve-{event}", f"{url}/webhook", [f"model_version_alias.{event}"], secret=SECRET
            )
        yield Site(version.name, store, url, running, folder / "serve.log")


def ask(url: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes, Any]:
    """Status, body and headers of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def draw(site: Site) -> tuple[int, bytes]:
    """The version that drew, and the picture."""
    status, png, headers = ask(f"{site.url}/generate", ASKED, BEARER)
    assert status == 200, png
    return int(headers["X-Adapter-Version"]), png


def becomes(site: Site, wanted: Callable[[int, Any], bool]) -> Any:
    """What /ready says as soon as it is as wanted."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status, body, _ = ask(f"{site.url}/ready")
        if wanted(status, json.loads(body)):
            return json.loads(body)
        time.sleep(0.1)
    raise AssertionError(f"{status} {body!r}\n{site.log.read_text()[-3000:]}")


def connected(site: Site, body: Any, whole: bool = True) -> socket.socket:
    """A client that asked for a picture, if not ``whole``, but for the last byte, and did not wait for the answer."""
    content = json.dumps(body).encode()
    one = socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2])))
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    one.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[: None if whole else -1])
    return one


def pour(site: Site, count: int) -> int:
    """The status that a client is told which sends a body of so many bytes in chunks, without saying how many."""
    with socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2])), timeout=30) as one:
        one.sendall(b"POST /webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(OSError):  # the server hangs up
            for _ in range(count // 2**16):
                one.sendall(b"10000\r\n" + b"a" * 2**16 + b"\r\n")
        return int(one.recv(100).split()[1])


def memory(site: Site) -> float:
    """The most memory that the server ever had, in MiB."""
    status = Path(f"/proc/{site.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def promote(site: Site, version: int) -> None:
    promotions.promote(site.name, version, site.store, "anna", Policy.from_file())
    becomes(site, lambda status, said: status == 200 and said["version"] == version)


def test_a_promotion_swaps_the_adapter_of_the_running_server_and_a_rollback_swaps_it_back(site: Site) -> None:
    """By MLflow's webhook: the registry itself is asked only once in a minute."""
    status, body, _ = ask(f"{site.url}/ready")
    assert (status, "has no champion" in json.loads(body)["problem"]) == (503, True)
    assert ask(f"{site.url}/generate", ASKED, BEARER)[0] == 503, "never the base model alone"
    promote(site, 1)
    first = draw(site)
    promote(site, 2)
    second = draw(site)
    assert (first[0], second[0]) == (1, 2)
    assert first[1] != second[1]
    promotions.rollback(site.name, site.store, "anna", Policy.from_file())
    becomes(site, lambda status, said: said["version"] == 1)
    assert draw(site) == first
    assert site.process.poll() is None


def test_a_base_whose_files_are_of_half_precision_is_drawn_with_too() -> None:
    live = FollowingPipeline("spare.canvas", "canvas")
    image = live.pipeline("A Cat image in Neon Lines style.", num_inference_steps=1).images[0]
    assert image.size == (64, 64)
    with pytest.raises(NotReady, match="has not been asked yet"):
        live.draw("A Cat image in Neon Lines style.", 1, num_inference_steps=1)


def test_pictures_asked_for_during_swaps_are_each_of_one_adapter(site: Site) -> None:
    promote(site, 1)
    known = dict([draw(site)])
    promote(site, 2)
    known |= dict([draw(site)])
    drawn: list[tuple[int, bytes]] = []
    stop = threading.Event()

    def keep_drawing() -> None:
        while not stop.is_set():
            drawn.append(draw(site))

    workers = [threading.Thread(target=keep_drawing) for _ in range(3)]
    for worker in workers:
        worker.start()
    for version in (1, 2, 1, 2):
        promote(site, version)
    stop.set()
    for worker in workers:
        worker.join()
    assert {version for version, _ in drawn} == {1, 2}
    assert all(png == known[version] for version, png in drawn)


def test_an_adapter_of_another_base_is_not_put_on_and_the_server_is_not_ready(
    site: Site, sd2_dir: Path, tmp_path: Path
) -> None:
    promote(site, 1)
    stored = write_adapter(tmp_path / "adapter", load_tiny(sd2_dir), "Followed")
    with stage_run("of another base", "register", "kfp-1") as run:
        other = register(run, site.store, stored.folder, name=site.name)
    promotions.promote(site.name, other.version, site.store, "anna", Policy.from_file(), "a mistake", force=True)
    said = becomes(site, lambda status, said: status == 503)
    assert f"is for the base {stored.base_digest}" in said["problem"]
    status, told, headers = ask(f"{site.url}/generate", ASKED, BEARER)
    assert (status, headers["Retry-After"]) == (503, "60"), "what is on may be what was to be taken down"
    assert b"is for the base" in told
    promote(site, 2)


def test_an_alias_that_nobody_promoted_is_not_followed_until_somebody_does(site: Site) -> None:
    """Whoever may write to MLflow may move an alias; the gate was not asked."""
    promote(site, 2)
    MlflowClient().set_registered_model_alias(site.name, "champion", "1")
    said = becomes(site, lambda status, said: status == 503)
    assert "points to version 1, which is not what the promotion log" in said["problem"]
    promote(site, 1)
    assert draw(site)[0] == 1
    promote(site, 2)


def test_who_did_not_see_the_registry_for_too_long_draws_nothing(site: Site, sd1_dir: Path) -> None:
    promote(site, 2)
    live = FollowingPipeline(site.name, str(sd1_dir), store=site.store)
    live.look()
    assert live.trouble is None
    assert live.draw("a cat", 1, num_inference_steps=1)[1] == 2
    live.stale_after = live.age  # what went by meanwhile is too long from here on, however fast the machine is
    with pytest.raises(NotReady, match=r"was not seen for \d+ s: something may have been taken down"):
        live.draw("a cat", 1, num_inference_steps=1)
    live.look()
    assert live.trouble is None


def test_of_sixty_at_once_some_wait_and_the_rest_is_told_when_to_come_again(site: Site) -> None:
    promote(site, 2)
    with ThreadPoolExecutor(60) as clients:
        asked = [clients.submit(ask, f"{site.url}/generate", SLOW, BEARER) for _ in range(60)]
        time.sleep(0.3)
        for probe in ("live", "ready", "metrics"):
            begun = time.monotonic()
            assert ask(f"{site.url}/{probe}")[0] == 200
            assert time.monotonic() - begun < 5, "a probe waits for no picture"
        answers = [one.result() for one in asked]
    statuses = [status for status, _, _ in answers]
    assert sorted(set(statuses)) == [200, 429]
    assert WAITING + 1 <= statuses.count(200) < 30
    assert all(int(headers["Retry-After"]) >= 1 for status, _, headers in answers if status == 429)
    told = ask(f"{site.url}/metrics")[1].decode()
    assert f'spare_images_requests_total{{outcome="busy"}} {float(statuses.count(429))}' in told
    assert "spare_images_version 2.0" in told
    assert "spare_images_ready 1.0" in told


def test_a_picture_that_nobody_waits_for_is_given_up(site: Site) -> None:
    promote(site, 2)
    begun = time.monotonic()
    assert ask(f"{site.url}/generate", SLOW, BEARER)[0] == 200
    alone = time.monotonic() - begun
    left = [connected(site, SLOW) for _ in range(WAITING + 1)]
    time.sleep(alone / 3)
    for one in left:
        one.close()
    begun = time.monotonic()
    while ask(f"{site.url}/generate", ASKED, BEARER)[0] == 429:
        assert time.monotonic() - begun < 20
        time.sleep(0.05)
    assert f'outcome="left"}} {WAITING + 1}.0' in ask(f"{site.url}/metrics")[1].decode()


def test_two_hundred_slow_clients_and_fifty_large_bodies_change_nothing(site: Site) -> None:
    promote(site, 2)
    draw(site)
    before = memory(site)
    slow = [connected(site, ASKED, whole=False) for _ in range(200)]
    with ThreadPoolExecutor(10) as senders:
        answers = list(senders.map(lambda _: pour(site, 20 * 2**20), range(50)))
    assert answers == [413] * 50
    assert ask(f"{site.url}/live")[0] == 200
    assert draw(site)[0] == 2
    slow[0].settimeout(30)
    assert b" 408 " in slow[0].recv(1000), "its body was to be here within ten seconds"
    for one in slow:
        one.close()
    assert memory(site) - before < 64, "MiB at the most, for a GiB that was sent"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer another"}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}]
)
def test_without_the_token_nothing_is_read(site: Site, headers: dict[str, str]) -> None:
    status, _, told = ask(f"{site.url}/generate", ASKED, headers)
    assert (status, told["WWW-Authenticate"]) == (401, "Bearer")


def test_a_server_that_others_can_reach_asks_for_a_token(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("abc")
    for given, said in (
        (["--host", "0.0.0.0"], "give --token-file FILE, or say --no-token"),
        (["--token-file", str(tmp_path / "short")], "holds 3 characters; a secret has 16 or more"),
        (["--token-file", str(tmp_path / "none")], "cannot be read"),
        (["--stale-after", "5"], "--stale-after more than --every"),
    ):
        command = [sys.executable, "-m", "serving.server", "spare.x", "--base", "canvas", *given]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_webhook_that_is_not_mlflows_is_refused(site: Site) -> None:
    body, now = b'{"name": "x"}', str(int(time.time()))
    mac = hmac.new(SECRET.encode(), f"1.{now}.".encode() + body, hashlib.sha256).digest()
    headers = {"x-mlflow-delivery-id": "1", "x-mlflow-timestamp": now,
               "x-mlflow-signature": f"v1,{base64.b64encode(mac).decode()}"}  # fmt: skip
    assert signed(body, headers, SECRET, float(now))
    assert not signed(body, headers, "another", float(now))
    assert not signed(body + b" ", headers, SECRET, float(now))
    assert not signed(body, headers, SECRET, float(now) + 301), "recorded, and sent again later"
    assert not signed(body, {**headers, "x-mlflow-timestamp": "soon"}, SECRET, float(now))
    assert ask(f"{site.url}/webhook", {"name": "x"})[0] == 403


@pytest.mark.parametrize("wrong", [{"prompt": ""}, {"prompt": "a", "steps": 0}, {"prompt": "a", "seed": -1}, {}])
def test_what_cannot_be_drawn_is_refused(site: Site, wrong: dict[str, Any]) -> None:
    assert ask(f"{site.url}/generate", wrong, BEARER)[0] == 422
