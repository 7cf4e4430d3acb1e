"""A live diffusers pipeline whose adapter follows ``@champion``, without a restart and without a picture in between.

MLflow's registry is asked every few seconds; a webhook may wake the follower sooner. An adapter goes on only if its
base is the one that is loaded and its bytes are those that were registered; until then the old one stays, and
``problem`` says why, for a readiness probe to take this server out of the traffic.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import mlflow.artifacts
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from spare_core.models.files import find_model
from spare_core.models.pipelines import load_pipeline

ALIAS = "champion"
WEIGHTS = "pytorch_lora_weights.safetensors"
_log = logging.getLogger(__name__)


class FollowingPipeline:
    """The base ``model`` (a diffusers directory, ``s3://``, a hub id or ``canvas``) with the champion of ``name``.

    ``version`` is that of the adapter which is on, ``problem`` why it is not the champion's; None for neither.
    """

    def __init__(self, name: str, model: str, device: str = "cpu") -> None:
        files = find_model(model)
        self.name, self.base_digest = name, files.digest()
        # Files of half precision are no reason to draw in it, where a CPU cannot.
        dtype = torch.float32 if device == "cpu" else torch.float16
        self.pipeline: Any = load_pipeline(files, dtype).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.version: int | None = None
        self.problem: str | None = "the registry has not been asked yet"
        self.asked_at = 0.0
        self._client = MlflowClient()
        self._drawing = threading.Lock()
        self._woken = threading.Event()

    def draw(self, prompt: str, seed: int, **settings: Any) -> tuple[Any, int | None]:
        """A picture, and the version of the adapter that drew it: a swap waits until it is finished."""
        with self._drawing:
            generator = torch.Generator(self.pipeline.device).manual_seed(seed)
            return self.pipeline(prompt, generator=generator, **settings).images[0], self.version

    def follow(self, seconds: float) -> None:
        """For ever: look where the alias points, at the latest every so many seconds."""
        while True:
            try:
                self.look()
            except Exception as error:  # whatever a registry answers must not end the following
                self.problem = f"{type(error).__name__}: {error}"
                _log.exception("the champion could not be put on")
            self._woken.wait(seconds)
            self._woken.clear()

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def look(self) -> None:
        """Put the champion's adapter on, unless it is on. A registry that cannot be reached changes nothing."""
        try:
            found = self._client.get_model_version_by_alias(self.name, ALIAS)
        except MlflowException as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                self.problem = f"{self.name} has no {ALIAS}"
            else:
                _log.warning("MLflow cannot be asked, version %s stays: %s", self.version, error)
            return
        self.asked_at = time.monotonic()
        if int(found.version) != self.version:
            with tempfile.TemporaryDirectory() as folder:
                self._swap(int(found.version), self._fetched(found, Path(folder)))
        self.problem = None

    def _fetched(self, found: Any, folder: Path) -> Path:
        """The adapter's folder, if it belongs to this base and is what was registered."""
        tags, uri = found.tags, f"models:/{self.name}/{found.version}"
        if tags.get("spare.base.digest") != self.base_digest:
            raise ValueError(f"{uri} is for the base {tags.get('spare.base.digest')}, here is {self.base_digest}")
        path = Path(mlflow.artifacts.download_artifacts(f"{uri}/adapter_weights", dst_path=str(folder)))
        sha256 = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
        if sha256 != tags.get("spare.adapter.sha256"):
            raise ValueError(f"{uri} holds {sha256}, but {tags.get('spare.adapter.sha256')} was registered")
        return path

    def _swap(self, version: int, folder: Path) -> None:
        """Between two pictures: the new adapter on, then the old one off."""
        old, new = self.version, f"version-{version}"
        with self._drawing:
            try:
                self.pipeline.load_lora_weights(str(folder), weight_name=WEIGHTS, adapter_name=new)
                self.pipeline.set_adapters(new)
            except BaseException:
                if old is not None:
                    self.pipeline.set_adapters(f"version-{old}")
                raise
            if old is not None:
                self.pipeline.delete_adapters(f"version-{old}")
            self.version = version
        _log.info("version %s of %s took the place of %s", version, self.name, old)
