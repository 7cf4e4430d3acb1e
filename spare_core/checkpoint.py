"""A run's unfinished state in ``OUTPUT/.checkpoint``: what a killed ``spare erase`` goes on from.

Each file is written all or nothing, and ``request.json`` says what was asked, so a checkpoint is never continued with
other settings. The folder is locked while a process works in it and removed when the adapter is written.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from spare_core.adapter import Adapter
from spare_core.artifact import MANIFEST, check_file, read_manifest
from spare_core.atomic import write_json, write_tensors
from spare_core.denoiser import Conditioning
from spare_core.distill import TrainingState
from spare_core.errors import OutputError, StorageError
from spare_core.examples import Examples, Side
from spare_core.masks import LayerMask, Masks

FOLDER: Final = ".checkpoint"
_SIDES: Final = ("forget", "retain", "forget_heldout", "retain_heldout")


def check_output(output: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Decide what an output folder is to a request: new (None), unfinished (None), or finished (its manifest).

    Raises:
        OutputError: if it holds anything that is not this request's.
    """
    if not output.exists():
        return None
    if not output.is_dir():
        raise OutputError(f"{output} is a file; give a folder for --output")
    if (output / MANIFEST).is_file():
        manifest = read_manifest(output)
        _compare(output, manifest.get("request"), request, "the finished adapter of another request")
        for name, facts in manifest["files"].items():
            check_file(output / name, facts["sha256"])
        shutil.rmtree(output / FOLDER, ignore_errors=True)  # of a run that was killed after writing its adapter
        return manifest
    if (output / FOLDER / "request.json").is_file():
        stored = json.loads((output / FOLDER / "request.json").read_text(encoding="utf-8"))
        _compare(output, stored, request, "an unfinished run of another request")
        return None
    if any(file.name != FOLDER for file in output.iterdir()):
        raise OutputError(f"{output} exists and is not ours (it has no {MANIFEST}); give a new or empty --output")
    return None


def _compare(output: Path, stored: Any, request: dict[str, Any], what: str) -> None:
    if stored == request:
        return
    old = stored if isinstance(stored, dict) else {}
    differing = sorted(key for key in request if old.get(key) != request[key])
    named = ", ".join(f"{key} {old.get(key)!r} there, {request[key]!r} now" for key in differing[:3])
    raise OutputError(f"{output} holds {what} ({named}); give another --output or delete that folder")


class Checkpoint:
    """The folder, locked for this process."""

    def __init__(self, output: Path, request: dict[str, Any]) -> None:
        self.folder = output / FOLDER
        self._created = [path for path in (self.folder, output) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise StorageError(f"cannot write to {output}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another process is working in {output}; wait for it or give another --output") from None
        if (self.folder / "request.json").exists():  # another process may have come and gone since check_output
            _compare(output, self.load_json("request"), request, "an unfinished run of another request")
        else:
            try:
                self.save_json("request", request)
            except StorageError:
                self.abandon_if_empty()
                raise

    def abandon_if_empty(self) -> None:
        """Leave nothing behind where nothing was worth keeping."""
        if any(self.folder.glob("*.safetensors")):
            self._lock.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self._created[1:]:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def remove(self) -> None:
        """The run is finished."""
        self._lock.close()
        shutil.rmtree(self.folder)

    def save_json(self, name: str, value: Any) -> None:
        """Keep plain values."""
        write_json(self.folder / f"{name}.json", value)

    def load_json(self, name: str) -> Any:
        """What was kept under ``name``, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save_examples(self, examples: Examples) -> None:
        """Keep all examples."""
        tensors = {f"table/added/{key}": value for key, value in examples.table.added.items()}
        tensors["table/prompt_embeds"] = examples.table.prompt_embeds
        for side in _SIDES:
            tensors |= {f"{side}/{key}": value for key, value in getattr(examples, side)._asdict().items()}
        texts = {"prompts": examples.prompts, "names": examples.names, "null_row": examples.null_row}
        self._save("examples", tensors, {"texts": json.dumps(texts)})

    def load_examples(self, device: torch.device) -> Examples | None:
        """The kept examples, or None."""
        loaded = self._load("examples")
        if loaded is None:
            return None
        tensors, metadata = loaded
        texts = json.loads(metadata["texts"])
        added = {key.removeprefix("table/added/"): value for key, value in tensors.items() if "/added/" in key}
        sides = {side: Side(*(tensors[f"{side}/{key}"] for key in Side._fields)) for side in _SIDES}
        table = Conditioning(tensors["table/prompt_embeds"], added).to(device)
        return Examples(tuple(texts["prompts"]), tuple(texts["names"]), table, texts["null_row"], **sides)

    def save_masks(self, masks: Masks) -> None:
        """Keep all masks."""
        tensors: dict[str, Tensor] = {}
        for name, mask in masks.items():
            tensors |= {f"{name}/rows": mask.rows, f"{name}/columns": mask.columns}
            if mask.entries is not None:
                tensors[f"{name}/entries"] = mask.entries
        self._save("masks", tensors, {})

    def load_masks(self) -> Masks | None:
        """The kept masks, or None."""
        loaded = self._load("masks")
        if loaded is None:
            return None
        tensors, _ = loaded
        names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
        return {
            name: LayerMask(tensors[f"{name}/rows"], tensors[f"{name}/columns"], tensors.get(f"{name}/entries"))
            for name in names
        }

    def save_state(self, state: TrainingState) -> None:
        """Keep the adapter and the optimiser's moments."""
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(state.adapter.parameters()):
            moments = state.optimizer.state[parameter]
            tensors[f"{i}/value"] = parameter
            tensors[f"{i}/first"], tensors[f"{i}/second"] = moments["exp_avg"], moments["exp_avg_sq"]
        facts = {
            "step": state.step,
            "history": state.history,
            "losses": state.losses,
            "stopped_early": state.stopped_early,
        }
        self._save("state", tensors, {"facts": json.dumps(facts)})

    def restore_state(self, state: TrainingState) -> None:
        """Bring a fresh ``state`` to where the kept one stood, if there is one."""
        loaded = self._load("state")
        if loaded is None:
            return
        tensors, metadata = loaded
        facts = json.loads(metadata["facts"])
        state.step, state.history, state.losses = facts["step"], facts["history"], facts["losses"]
        state.stopped_early = facts["stopped_early"]
        _restore_moments(state.adapter, state.optimizer, tensors, state.step)

    def _save(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        write_tensors(self.folder / f"{name}.safetensors", tensors, metadata)

    def _load(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        with safe_open(path, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


@torch.no_grad()
def _restore_moments(adapter: Adapter, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor], step: int) -> None:
    for i, parameter in enumerate(adapter.parameters()):
        parameter.copy_(tensors[f"{i}/value"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"{i}/first"].to(parameter.device),
            "exp_avg_sq": tensors[f"{i}/second"].to(parameter.device),
        }
