"""What the stages hand to each other, as files: examples, probes, profile, masks, the state of a training.

Tensors lie in safetensors files, texts in their metadata. Each ``load_…`` reads what its ``save_…`` wrote, and raises
:class:`StageError` where the file is missing or damaged.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from spare_core.adapters.layer_mask import LayerMask, Masks
from spare_core.errors import StageError
from spare_core.files.atomic import read_tensors, write_json, write_tensors
from spare_core.method.bank import Bank, Side
from spare_core.method.distill import Best, TrainingState
from spare_core.method.gap import TimestepProfile
from spare_core.method.probes import HeldOut, Probe
from spare_core.models.conditioning import Conditioning

_SIDES: Final = ("forget", "retain")
_FACTS: Final = (
    "step", "lr", "closed_form", "trials", "history", "losses", "stopped_early", "taken_back", "seconds",
)  # fmt: skip


def save_bank(bank: Bank, path: Path) -> None:
    """Write the prompt table, both sides, and the texts as metadata."""
    tensors = bank.table.as_tensors()
    for name, side in (("forget", bank.forget), ("retain", bank.retain)):
        # The retain side's teacher is its student: once is enough.
        same = ("under_teacher",) if side.under_teacher is side.under_student else ()
        tensors |= _named(name, {key: value for key, value in side._asdict().items() if key not in same})
    texts = {"prompts": bank.prompts, "names": bank.names, "null_row": bank.null_row}
    write_tensors(path, tensors, {"texts": json.dumps(texts)})


def load_bank(path: Path, device: torch.device) -> Bank:
    """The bank, its prompt table on ``device``."""
    with _reading(path, "bank of a prepare stage", "run it again"):
        tensors, metadata = read_tensors(path)
        texts = json.loads(metadata["texts"])
        tensors.setdefault("retain/under_teacher", tensors["retain/under_student"])
        sides = {side: Side(*(tensors[f"{side}/{key}"] for key in Side._fields)) for side in _SIDES}
        table = Conditioning.from_tensors(tensors).to(device)
        return Bank(tuple(texts["prompts"]), tuple(texts["names"]), table, texts["null_row"], **sides)


def save_probes(held_out: HeldOut, path: Path) -> None:
    """Write the prompt table and the probes of both sides, and the names as metadata."""
    tensors = held_out.table.as_tensors()
    tensors |= _named("forget", held_out.forget._asdict()) | _named("retain", held_out.retain._asdict())
    write_tensors(path, tensors, {"names": json.dumps(held_out.names)})


def load_probes(path: Path, device: torch.device) -> HeldOut:
    """The probes, their prompt table on ``device``."""
    with _reading(path, "probes of a prepare stage", "run it again"):
        tensors, metadata = read_tensors(path)
        sides = {side: Probe(*(tensors[f"{side}/{key}"] for key in Probe._fields)) for side in _SIDES}
        return HeldOut(tuple(json.loads(metadata["names"])), Conditioning.from_tensors(tensors).to(device), **sides)


def save_profile(profile: TimestepProfile, path: Path) -> None:
    """Write JSON; the gap's float32 values survive it exactly."""
    write_json(path, profile.as_dict())


def load_profile(path: Path) -> TimestepProfile:
    """The timestep profile."""
    with _reading(path, "timestep profile", "run the timesteps stage again"):
        values = json.loads(path.read_text(encoding="utf-8"))
        edges, gap = torch.tensor(values["edges"]), torch.tensor(values["gap"])
        if edges.dtype != torch.int64 or gap.ndim != 1 or edges.shape != (len(gap) + 1,):
            raise ValueError("edges and gaps that do not fit")
        return TimestepProfile(edges, gap)


def save_masks(masks: Masks, path: Path) -> None:
    """Write rows, columns and, for weight masks, entries of each layer."""
    tensors: dict[str, Tensor] = {}
    for name, mask in masks.items():
        entries = {} if mask.entries is None else {"entries": mask.entries}
        tensors |= _named(name, {"rows": mask.rows, "columns": mask.columns, **entries})
    write_tensors(path, tensors)


def load_masks(path: Path) -> Masks:
    """The masks, by layer."""
    with _reading(path, "masks", "run the saliency stage again"):
        tensors, _ = read_tensors(path)
        return {
            name: LayerMask(tensors[f"{name}/rows"], tensors[f"{name}/columns"], tensors.get(f"{name}/entries"))
            for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors)
        }


def save_state(state: TrainingState, path: Path) -> None:
    """Write the adapter's parameters, the optimiser's moments, and the rest as metadata."""
    tensors: dict[str, Tensor] = {}
    for i, parameter in enumerate(state.adapter.parameters()):
        moments = state.optimizer.state[parameter]
        values = {"value": parameter, "first": moments["exp_avg"], "second": moments["exp_avg_sq"]}
        tensors |= _named(str(i), values)
    for i, parameter in enumerate(state.best.adapter.parameters() if state.best else ()):
        tensors[f"{i}/best"] = parameter
    best = None if state.best is None else [state.best.step, state.best.cost]
    facts = {name: getattr(state, name) for name in _FACTS}
    write_tensors(path, tensors, {"facts": json.dumps({**facts, "best": best})})


@torch.no_grad()
def restore_state(state: TrainingState, path: Path) -> None:
    """Bring ``state``, fresh from :func:`spare_core.method.distill.new_state`, to where the saved one stood."""
    with _reading(path, "state of this run", "delete it to start anew"):
        tensors, metadata = read_tensors(path)
        facts = json.loads(metadata["facts"])
        for i, parameter in enumerate(state.adapter.parameters()):
            parameter.copy_(tensors[f"{i}/value"])
            state.optimizer.state[parameter] = {
                "step": torch.tensor(float(facts["step"]), device=parameter.device),
                "exp_avg": tensors[f"{i}/first"].to(parameter.device),
                "exp_avg_sq": tensors[f"{i}/second"].to(parameter.device),
            }
        if facts["best"] is not None:
            state.best = Best(copy.deepcopy(state.adapter), *facts["best"])
            for i, parameter in enumerate(state.best.adapter.parameters()):
                parameter.copy_(tensors[f"{i}/best"])
        for name in _FACTS:
            setattr(state, name, facts[name])


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


@contextlib.contextmanager
def _reading(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into one error that names the file and what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StageError(f"{path} holds no {what}: {error!r}; {remedy}") from None
