"""The keys of a task's services: files of mounted Secrets, which the task itself puts where clients look for them.

What a pod's specification puts into the environment, Kubernetes replaces in its command wherever ``$(NAME)`` stands
there, and KFP writes a task's inputs into that command. So no Secret is in the environment of the specification.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from spare_core.errors import InputError

SECRETS: Final[Mapping[str, Mapping[str, str]]] = {
    "spare-s3": {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"},
    "spare-mlflow": {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"},
    "spare-hub": {"token": "HF_TOKEN"},
}
"""Secret -> its keys, which are files, and the environment variables they become. One that is not there is no error."""
FOLDER: Final = Path("/etc/spare/secrets")
"""Where each is mounted, by its name."""


def read_secrets(folder: Path = FOLDER) -> None:
    """Put the keys that are mounted into this process's environment, but for those that are set there.

    Raises:
        InputError: if a file is there and cannot be read.
    """
    for secret, variables in SECRETS.items():
        for key, variable in variables.items():
            path = folder / secret / key
            if variable in os.environ or not path.exists():
                continue
            try:
                os.environ[variable] = path.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is not text"
                raise InputError(f"{path}, of the Secret {secret}, cannot be read: {why}") from None
