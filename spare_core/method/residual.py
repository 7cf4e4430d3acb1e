"""Residual and drift: how much of a concept is left and what happened to the rest, without any judge.

Both are ratios of mean squared differences of predictions, on trajectories from held-out contexts and noise, at
timesteps spread over the schedule (DESIGN 3, Measures)."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import EMPTY, NULL, PromptPlan
from spare_core.errors import InputError, StageError
from spare_core.files.atomic import read_tensors, write_tensors
from spare_core.method.prompt_table import CONCEPT, SURROGATE, pose
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import predict_rows, sample_trajectories
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser

NULL_NAME = "(empty prompt)"
NO_DIFFERENCE = (
    "the model predicts the same noise for the concept and its surrogate: it does not know one of them, so there is "
    "nothing to erase; check the spelling or choose another surrogate"
)


@dataclass(frozen=True)
class Measurement:
    """``residuals``: for each erased concept, 1 nothing erased, 0 overwritten; ``drift``: for each kept concept, 0
    untouched."""

    residuals: dict[str, float]
    drift: dict[str, float]

    @property
    def residual(self) -> float:
        """Mean over the erased concepts."""
        return sum(self.residuals.values()) / len(self.residuals)

    @property
    def worst_residual(self) -> float:
        """That of the concept that is left most of."""
        return max(self.residuals.values())

    @property
    def mean_drift(self) -> float:
        """Mean over the kept concepts."""
        return sum(self.drift.values()) / len(self.drift)

    def cost(self, drift_weight: float) -> float:
        """One figure to choose by."""
        return self.residual + drift_weight * self.mean_drift

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "residual": self.residual,
            "residuals": self.residuals,
            "drift": self.drift,
            "mean_drift": self.mean_drift,
        }


UNTOUCHED = Measurement({"": 1.0}, {NULL_NAME: 0.0})
"""What an adapter that changes nothing measures, by definition."""


class Probe(NamedTuple):
    """What is asked again with an adapter on: M noisy latents ``(M, C, H, W)`` at ``timesteps`` ``(M,)`` under rows
    ``prompt`` ``(M,)`` of the prompt table, and the frozen model's answers ``teacher`` ``(M, C, H, W)`` to what they
    should give. ``unit`` ``(M,)`` is ||eps(c) - eps(s)||^2: of each row on the forget side, its mean on the other."""

    noisy: Tensor
    timesteps: Tensor
    prompt: Tensor
    teacher: Tensor
    unit: Tensor


@dataclass(frozen=True)
class HeldOut:
    """Probes of both sides. ``names[row]`` is the concept that prompt ``row`` of the table names."""

    names: tuple[str, ...]
    table: Conditioning
    forget: Probe
    retain: Probe

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = self.table.as_tensors()
        for side in ("forget", "retain"):
            tensors |= {f"{side}/{key}": value for key, value in getattr(self, side)._asdict().items()}
        write_tensors(path, tensors, {"names": json.dumps(self.names)})

    @classmethod
    def load(cls, path: Path, device: torch.device) -> HeldOut:
        """What :meth:`save` wrote, its prompt table on ``device``.

        Raises:
            StageError: if the file is missing or damaged.
        """
        try:
            tensors, metadata = read_tensors(path)
            sides = {side: Probe(*(tensors[f"{side}/{key}"] for key in Probe._fields)) for side in ("forget", "retain")}
            table = Conditioning.from_tensors(tensors).to(device)
            return cls(tuple(json.loads(metadata["names"])), table, **sides)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StageError(f"{path} does not hold the probes of a prepare stage: {error!r}; run it again") from None

    def thinned(self) -> HeldOut:
        """A fifth of the probes, the same ones each time: enough to tell candidates apart."""

        def part(probe: Probe) -> Probe:
            count = len(probe.timesteps)
            some = torch.randperm(count, generator=torch.Generator().manual_seed(count))[: -(-count // 5)]
            return Probe(*(value[some] for value in probe))

        return HeldOut(self.names, self.table, part(self.forget), part(self.retain))


def draw_held_out(denoiser: Denoiser, erasures: Erasures, settings: EraseSettings, each: int = 1) -> HeldOut:
    """Sample both sides in contexts and from noise that no training sees, and keep the frozen model's answers:
    ``settings.heldout`` trajectories a side, at least ``each`` of every concept, erased or kept.

    Half as many steps as a training trajectory has: their timesteps are spread over all of the schedule too.

    Raises:
        InputError: if concept and surrogate are the same to the frozen model.
    """
    plan = PromptPlan(erasures, settings.seed, heldout=True)
    forget = plan.forget(max(settings.heldout, each * len(erasures)))
    retain = plan.retain(max(settings.heldout, each * len(plan.kept())))
    beside = plan.pairs_beside(retain)
    further = [prompt for pair in beside for prompt in pair]
    rows, table, overwritten, held = pose(denoiser, plan, forget, retain, settings.resolution, further)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + 31)
    steps = max(2, settings.example_steps // 2)
    drawn = sample_trajectories(
        denoiser, table, overwritten + held, steps, settings.guidance, generator, settings.resolution
    )
    forgets, retains = drawn[: len(forget)], drawn[len(forget) :]
    # One state of each retained trajectory, at all of its timesteps in turn, also answers for the empty prompt and for
    # the pair whose gap is the unit of drift.
    singles = [(one, i % steps) for i, one in enumerate(retains)]
    noisy = torch.stack([one.noisy[i] for one, i in singles])
    timesteps = torch.stack([one.timesteps[i] for one, i in singles])
    under_pair = [
        predict_rows(denoiser, table, noisy, timesteps, torch.tensor([rows[prompt] for prompt in side]))
        for side in zip(*beside, strict=True)
    ]
    concept, surrogate = (torch.cat([one.predictions[:, place] for one in forgets]) for place in (CONCEPT, SURROGATE))
    gap = _square(concept - surrogate)
    asked = [pair.concept.name for pair in forget for _ in range(steps)]
    for name in dict.fromkeys(asked):
        if not gap[torch.tensor([other == name for other in asked])].any():
            raise InputError(f"{name!r}: {NO_DIFFERENCE}")
    return HeldOut(
        names=tuple(prompt.name for prompt in rows),
        table=table,
        forget=Probe(
            noisy=torch.cat([one.noisy for one in forgets]),
            timesteps=torch.cat([one.timesteps for one in forgets]),
            prompt=torch.tensor([asked.rows[CONCEPT] for asked in overwritten]).repeat_interleave(steps),
            teacher=surrogate,
            unit=gap,
        ),
        retain=Probe(
            noisy=torch.cat([*(one.noisy for one in retains), noisy]),
            timesteps=torch.cat([*(one.timesteps for one in retains), timesteps]),
            prompt=torch.tensor([rows[p] for p in retain for _ in range(steps)] + [rows[EMPTY]] * len(singles)),
            teacher=torch.cat(
                [
                    *(one.predictions[:, 0] for one in retains),
                    torch.stack([one.predictions[i, 1] for one, i in singles]),
                ]
            ),
            unit=_square(under_pair[0] - under_pair[1]).mean().expand(len(retain) * steps + len(singles)),
        ),
    )


class Meter:
    """Measures adapters of one denoiser on one set of probes."""

    def __init__(self, denoiser: Denoiser, held_out: HeldOut) -> None:
        self.denoiser, self.held_out = denoiser, held_out

    def _ask(self, probe: Probe) -> Tensor:
        return predict_rows(self.denoiser, self.held_out.table, probe.noisy, probe.timesteps, probe.prompt)

    @torch.no_grad()
    def measure(self, *adapters: Adapter) -> Measurement:
        """Residual and drift with ``adapters`` on."""
        with contextlib.ExitStack() as stack:
            for adapter in adapters:
                stack.enter_context(adapter.attached(self.denoiser))
            forget, retain = self._ask(self.held_out.forget), self._ask(self.held_out.retain)
        drift = self._changes(self.held_out.retain, retain)
        named = {name if name != NULL else NULL_NAME: change for name, change in drift.items()}
        return Measurement(self._changes(self.held_out.forget, forget), named)

    def _changes(self, probe: Probe, predictions: Tensor) -> dict[str, float]:
        """Squared distance to the teacher in units of the gap, by the concept that the prompts name."""
        moved = _square(predictions - probe.teacher)
        names = [self.held_out.names[row] for row in probe.prompt.tolist()]
        changes = {}
        for name in dict.fromkeys(names):
            rows = torch.tensor([other == name for other in names])
            changes[name] = float(moved[rows].sum() / probe.unit[rows].sum())
        return changes


def _square(difference: Tensor) -> Tensor:
    """Mean square of each row."""
    return difference.double().pow(2).flatten(1).mean(dim=1)
