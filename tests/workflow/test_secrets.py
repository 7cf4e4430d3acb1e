"""A task's keys come from mounted files into its own environment, and from nowhere that Kubernetes would expand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spare_core.errors import InputError
from spare_core.workflow.secrets import SECRETS, read_secrets

VARIABLES = [variable for variables in SECRETS.values() for variable in variables.values()]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that what a test sets is taken back
        monkeypatch.delenv(variable)


def mount(folder: Path, secret: str, **keys: str) -> None:
    """As Kubernetes does: links to files in a folder of the moment."""
    moment = folder / secret / "..2026_11_28"
    moment.mkdir(parents=True)
    for key, value in keys.items():
        (moment / key).write_text(value)
        (folder / secret / key).symlink_to(moment / key)


def test_what_is_mounted_is_set_and_what_is_not_is_no_error(tmp_path: Path) -> None:
    mount(tmp_path, "spare-s3", access_key_id="AKIA", secret_access_key="a key\n")
    mount(tmp_path, "spare-mlflow", username="spare")
    read_secrets(tmp_path)
    found = {variable: os.environ.get(variable) for variable in VARIABLES}
    assert found == {
        "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "a key", "MLFLOW_TRACKING_USERNAME": "spare",
        "MLFLOW_TRACKING_PASSWORD": None, "HF_TOKEN": None,
    }  # fmt: skip


def test_what_somebody_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(tmp_path, "spare-hub", token="mounted")
    monkeypatch.setenv("HF_TOKEN", "given")
    read_secrets(tmp_path)
    assert os.environ["HF_TOKEN"] == "given"
    read_secrets(tmp_path / "nowhere")


def test_a_key_that_cannot_be_read_is_named_without_its_words(tmp_path: Path) -> None:
    (tmp_path / "spare-hub").mkdir()
    (tmp_path / "spare-hub" / "token").write_bytes(b"secret \xff")
    with pytest.raises(InputError, match="of the Secret spare-hub, cannot be read: it is not text") as caught:
        read_secrets(tmp_path)
    assert "secret \\" not in str(caught.value)
