"""The example server swaps the champion's adapter on a live pipeline: no restart, no picture of two adapters."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient

from serving.following import FollowingPipeline
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
ASKED = {"prompt": "a cat", "seed": 3, "steps": 2}


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
        command = [sys.executable, "-P", "-m", "serving.server", version.name, "--base", str(sd1_dir), "--port",
                   str(port), "--every", "60"]  # fmt: skip
        environment = {**server.environment, "WEBHOOK_SECRET": SECRET, "PYTHONPATH": str(Path(__file__).parents[2])}
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
    status, png, headers = ask(f"{site.url}/generate", ASKED)
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


def promote(site: Site, version: int) -> None:
    promotions.promote(site.name, version, site.store, "anna", Policy.from_file())
    becomes(site, lambda status, said: status == 200 and said["version"] == version)


def test_a_promotion_swaps_the_adapter_of_the_running_server_and_a_rollback_swaps_it_back(site: Site) -> None:
    """By MLflow's webhook: the registry itself is asked only once in a minute."""
    status, body, _ = ask(f"{site.url}/ready")
    assert (status, "has no champion" in json.loads(body)["problem"]) == (503, True)
    assert ask(f"{site.url}/generate", ASKED)[0] == 503, "never the base model alone"
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
    image, version = live.draw("A Cat image in Neon Lines style.", 1, num_inference_steps=1)
    assert (image.size, version) == ((64, 64), None)


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
    before = draw(site)
    stored = write_adapter(tmp_path / "adapter", load_tiny(sd2_dir), "Followed")
    with stage_run("of another base", "register", "kfp-1") as run:
        other = register(run, site.store, stored.folder, name=site.name)
    promotions.promote(site.name, other.version, site.store, "anna", Policy.from_file(), "a mistake", force=True)
    said = becomes(site, lambda status, said: status == 503)
    assert f"is for the base {stored.base_digest}" in said["problem"]
    assert draw(site) == before
    promote(site, 2)


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
    assert ask(f"{site.url}/generate", wrong)[0] == 422
