"""What each duty's MLflow user needs and no more, behind basic-auth with READ for everybody, as in k8s/README.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from serving.following import FollowingPipeline
from spare_core.errors import RegistryError
from spare_core.evaluation.gate import Policy
from spare_core.models.unet import UNetDenoiser
from spare_core.registry import promotions, views
from spare_core.registry.client import connect
from spare_core.store import open_store
from tests.support.mlflow_servers import KEEPER, PASSWORD, Server
from tests.support.registrations import register_one

pytest_plugins = ("tests.support.mlflow_fixtures",)
LONG = "long-and-known-to-nobody"


def make_users(server: Server, lines: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    """As in MLflow's pod, which has the administrator's password."""
    return subprocess.run(
        [sys.executable, "-m", "serving.mlflow_users", "--uri", server.uri, "--admin", KEEPER, "--promoter",
         "duty-promote"],
        input=lines, text=True, capture_output=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "MLFLOW_AUTH_ADMIN_PASSWORD": password, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
    )  # fmt: skip


def as_user(server: Server, name: str) -> Server:
    """The server, for one of its users."""
    return Server(server.uri, {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": LONG})


def test_the_image_server_reads_and_the_promoter_moves_aliases_of_the_models_it_was_given(
    mlflow_auth_server: Server, tmp_path: Path, sd1_dir: Path, denoiser: UNetDenoiser
) -> None:
    store = open_store(str(tmp_path / "store"))
    with mlflow_auth_server.used():
        version = register_one(tmp_path / "adapter", denoiser, "Duties", 1, store=store)
    done = make_users(mlflow_auth_server, f"duty-images {LONG}\nanna {LONG}\n")
    assert (done.returncode, done.stdout) == (0, "duty-images: made\nanna: made\n"), done.stderr
    policy = Policy.from_file()
    with as_user(mlflow_auth_server, "anna").used(), pytest.raises(RegistryError, match="refuses these"):
        promotions.promote(version.name, 1, store, "anna", policy)
    for said in ("duty-promote: made\n", "duty-promote: was there, has this password\n"):
        done = make_users(mlflow_auth_server, f"\nduty-promote {LONG}\n")
        assert done.stdout == f"{said}duty-promote: has the role promoters\n", done.stderr
    with as_user(mlflow_auth_server, "duty-promote").used():
        assert promotions.promote(version.name, 1, store, "anna", policy).aliases.champion == 1
    with as_user(mlflow_auth_server, "duty-images").used():
        live = FollowingPipeline(version.name, str(sd1_dir), store=store)
        live.look()
        assert (live.version, live.trouble) == (1, None)
        assert views.verify(version.name, store)["entries"] == 2
        with pytest.raises(MlflowException, match="Permission denied"):
            connect().delete_registered_model_alias(version.name, "champion")


def test_a_line_that_is_no_user_makes_nobody_and_its_words_are_not_repeated(mlflow_auth_server: Server) -> None:
    done = make_users(mlflow_auth_server, f"somebody {LONG}\nanother {LONG} and more\n")
    assert done.returncode == 1
    assert done.stderr.endswith("error: line 2 has 4 words; it must be NAME PASSWORD\n")
    assert "somebody: made" in make_users(mlflow_auth_server, f"somebody {LONG}").stdout, "it had not been"
    refused = make_users(mlflow_auth_server, f"another {LONG}", password="not-the-one")
    assert (refused.returncode, LONG in refused.stderr, "not-the-one" in refused.stderr) == (1, False, False)
