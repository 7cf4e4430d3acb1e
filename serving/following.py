"""A live diffusers pipeline whose adapter follows ``@champion``, without a restart and without a picture in between.

MLflow's registry is asked every few seconds; a webhook may wake the follower sooner. An adapter goes on only if its
base is the one that is loaded, its bytes are those that were registered, and, where the store is given, the promotion
log says that this version with these bytes was promoted: an alias is moved by whoever may write to MLflow. Until then,
and when the registry was not seen for too long, nothing is drawn: what is on may be what was to be taken down.
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

from spare_core.errors import LogDamaged, RegistryUnavailable, StoreUnavailable
from spare_core.models.files import find_model
from spare_core.models.pipelines import load_pipeline
from spare_core.registry.log import Entry, made_champion
from spare_core.registry.models import ADAPTER
from spare_core.registry.promotions import CHAMPION, read_log
from spare_core.store import Store

STALE_SECONDS = 900.0
WEIGHTS = "pytorch_lora_weights.safetensors"
_log = logging.getLogger(__name__)


class NotReady(Exception):
    """Nothing may be drawn now; its text says why."""


class Stopped(Exception):
    """A picture was given up between two of its steps."""


class FollowingPipeline:
    """The base ``model`` (a diffusers directory, ``s3://``, a hub id or ``canvas``) with the champion of ``name``.

    ``version`` is that of the adapter which is on, None for none; ``trouble`` says why nothing may be drawn with it.

    Args:
        name: of the registered model.
        model: the base.
        device: ``cpu`` or ``cuda``.
        store: where the promotion log lies; without it the alias alone is believed.
        stale_after: seconds without an answer of MLflow (and of the store) after which nothing is drawn.
    """

    def __init__(
        self, name: str, model: str, device: str = "cpu", store: Store | None = None, stale_after: float = STALE_SECONDS
    ) -> None:
        files = find_model(model)
        self.name, self.base_digest = name, files.digest()
        # Files of half precision are no reason to draw in it, where a CPU cannot.
        dtype = torch.float32 if device == "cpu" else torch.float16
        self.pipeline: Any = load_pipeline(files, dtype).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.version: int | None = None
        self.stale_after = stale_after
        self._problem: str | None = "the registry has not been asked yet"
        self._seen = time.monotonic()
        self._client = MlflowClient()
        self._store = store
        self._entries: tuple[Entry, ...] = ()
        self._drawing = threading.Lock()
        self._woken = threading.Event()

    @property
    def age(self) -> float:
        """Seconds since the registry was seen."""
        return time.monotonic() - self._seen

    @property
    def trouble(self) -> str | None:
        """Why nothing may be drawn; None if it may."""
        if self._problem is None and self.age > self.stale_after:
            return f"the registry was not seen for {self.age:.0f} s: something may have been taken down since"
        return self._problem

    def draw(
        self, prompt: str, seed: int, stop: threading.Event | None = None, **settings: Any
    ) -> tuple[Any, int | None]:
        """A picture, and the version of the adapter that drew it: a swap waits until it is finished.

        Raises:
            NotReady: if nothing may be drawn.
            Stopped: soon after ``stop`` was set.
        """

        def look(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if stop is not None and stop.is_set():
                raise Stopped
            return tensors

        with self._drawing:
            if (trouble := self.trouble) is not None:
                raise NotReady(trouble)
            generator = torch.Generator(self.pipeline.device).manual_seed(seed)
            made = self.pipeline(prompt, generator=generator, callback_on_step_end=look, **settings)
            return made.images[0], self.version

    def follow(self, seconds: float) -> None:
        """For ever: look where the alias points, at the latest every so many seconds."""
        while True:
            try:
                self.look()
            except Exception as error:  # whatever a registry answers must not end the following
                self._problem = f"{type(error).__name__}: {error}"
                _log.exception("the champion could not be put on")
            self._woken.wait(seconds)
            self._woken.clear()

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def look(self) -> None:
        """Put the champion's adapter on, unless it is on. What cannot be reached changes nothing, for a while."""
        try:
            found = self._promoted()
        except (MlflowException, RegistryUnavailable, StoreUnavailable) as error:
            _log.warning("the registry cannot be asked, version %s stays: %s", self.version, error)
            return
        self._seen = time.monotonic()
        if found is None:
            self._problem = f"{self.name} has no {CHAMPION}"
            return
        if int(found.version) != self.version:
            with tempfile.TemporaryDirectory() as folder:
                self._swap(int(found.version), self._fetched(found, Path(folder)))
        self._problem = None

    def _promoted(self) -> Any:
        """The version that the alias points to, once the promotion log says so too; None where there is no alias."""
        while True:
            found = self._aliased()
            if found is None or self._store is None:
                return found
            self._entries = read_log(self._client, self._store, self.name, self._entries)
            move = made_champion(self._entries, int(found.version))
            if move is not None and move.adapter_sha256 == found.tags.get(ADAPTER):
                return found
            again = self._aliased()
            if again is not None and again.version == found.version:  # it was not moved while the log was read
                raise LogDamaged(
                    f"{CHAMPION} of {self.name} points to version {found.version}, which is not what the promotion log "
                    f"in {self._store.uri} says; promote it, and the gate will be asked"
                )

    def _aliased(self) -> Any:
        """The version that the alias points to; None where there is no alias."""
        try:
            return self._client.get_model_version_by_alias(self.name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                return None
            raise

    def _fetched(self, found: Any, folder: Path) -> Path:
        """The adapter's folder, if it belongs to this base and is what was registered."""
        tags, uri = found.tags, f"models:/{self.name}/{found.version}"
        if tags.get("spare.base.digest") != self.base_digest:
            raise ValueError(f"{uri} is for the base {tags.get('spare.base.digest')}, here is {self.base_digest}")
        path = Path(mlflow.artifacts.download_artifacts(f"{uri}/adapter_weights", dst_path=str(folder)))
        sha256 = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
        if sha256 != tags.get(ADAPTER):
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
