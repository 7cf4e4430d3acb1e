"""A promoted Canvas adapter is used as MLflow's users do: loaded by alias, and served, with stock tools only."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from serving.services import ended, free_port
from spare_core.evaluation.gate import Policy
from spare_core.models.loading import load_denoiser
from spare_core.registry.promotions import promote
from spare_core.registry.registering import register
from spare_core.registry.tracking import stage_run
from spare_core.store import open_store
from tests.support.mlflow_servers import Server
from tests.support.registrations import register_one, set_source, write_adapter

pytest_plugins = ("tests.support.mlflow_fixtures",)
PROMPT = "A Cat image in Rust style."


@pytest.fixture(scope="module")
def champion(mlflow_s3_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a registered model whose champion is a (random) adapter of Canvas."""
    folder = tmp_path_factory.mktemp("serving")
    with mlflow_s3_server.used():
        version = register_one(folder, load_denoiser("canvas", "cpu", "float32"), "Served")
        promote(version.name, version.version, open_store(str(folder / "store")), "anna", Policy.from_file())
        yield version.name


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_the_champion_draws_in_its_models_own_size(champion: str) -> None:
    assert champion == "spare.canvas.served"
    model = mlflow.pyfunc.load_model(f"models:/{champion}@champion")
    [png] = model.predict([PROMPT])
    assert isinstance(png, bytes)
    assert size(png) == (64, 64)
    assert size(model.predict({"prompt": [PROMPT]}, params={"height": 32, "width": 32})[0]) == (32, 32)


def test_the_champion_is_served(champion: str, mlflow_s3_server: Server, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{champion}@champion", "--env-manager",
               "local", "-h", "127.0.0.1", "-p", str(port)]  # fmt: skip
    # mlflow starts uvicorn by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **mlflow_s3_server.environment, "PATH": path}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    with ended(process):
        request = {"inputs": [PROMPT], "params": {"num_inference_steps": 2}}
        answer = ask(f"http://127.0.0.1:{port}/invocations", request, process, tmp_path / "log")
    assert size(base64.b64decode(answer["predictions"][0])) == (64, 64)


def ask(url: str, body: object, process: subprocess.Popen[bytes], log: Path) -> dict[str, list[str]]:
    """The server's answer, as soon as it gives one."""
    data = json.dumps(body).encode()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                answer: dict[str, list[str]] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-2000:])


def test_a_base_on_s3_is_fetched_where_the_adapter_is_loaded_and_must_be_the_same(
    bucket: str, mlflow_s3_server: Server, sd1_dir: Path, sd2_dir: Path, tmp_path: Path
) -> None:
    open_store(f"s3://{bucket}").upload(sd1_dir, "base")
    stored = write_adapter(tmp_path / "adapter", load_denoiser(str(sd1_dir), "cpu", "float32"), "On S3")
    set_source(stored.folder, f"s3://{bucket}/base")
    with mlflow_s3_server.used(), stage_run("on s3", "register", "kfp-1") as run:
        version = register(run, open_store(f"s3://{bucket}"), stored.folder)
        assert version.name.startswith("spare.base-")
        model = mlflow.pyfunc.load_model(version.uri)
        assert model.predict(["a cat"], params={"num_inference_steps": 1})[0].startswith(b"\x89PNG")
        open_store(f"s3://{bucket}").upload(sd2_dir, "other")
        with pytest.raises(RuntimeError, match="is not the base model that this adapter was trained for"):
            mlflow.pyfunc.load_model(version.uri, model_config={"base_model": f"s3://{bucket}/other"})
