"""Everything that steers an erasure, checked in one place before any work starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from spare_core.checks import field_problems
from spare_core.errors import SettingsError
from spare_core.models.device import Device, Precision
from spare_core.store.fetching import read_yaml_mapping

MaskKind = Literal["text", "module", "channel", "weight", "none"]
SaliencyLoss = Literal["denoise", "gap"]
TimestepSampling = Literal["gap", "uniform", "window", "threshold"]
LearningRate = float | Literal["auto"]
Adversaries = Literal["none", "vectors"]
Alpha = float | Literal["rank"]
Rank = int | Literal["auto"]


class Only(NamedTuple):
    """A setting has a meaning only where another, ``setting``, is one of ``values``."""

    setting: str
    values: tuple[str | bool, ...]

    @property
    def allowed(self) -> str:
        """The values as a file of settings has them."""
        return " or ".join(value if isinstance(value, str) else str(value).lower() for value in self.values)


METHODS: Final = ("solve", "paper", "both", "robust")
"""Named sets of values, files in ``presets``; the first is what the defaults are."""
_PRESETS: Final = Path(__file__).parent / "presets"

_SCORED: Final = Only("mask", ("module", "channel", "weight"))
_BY_GAP: Final = Only("timesteps", ("gap",))
_SOLVED: Final = Only("closed_form", (True,))
_OPPOSED: Final = Only("adversary", ("vectors",))
_RANKS: Final = 8
"""The smallest rank that is chosen, and what larger ones are a multiple of."""


def _setting(
    default: Any,
    meaning: str,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    only: Only | None = None,
) -> Any:
    """A field with its meaning, the range it is checked against, and where it has a meaning at all."""
    return field(
        default=default, metadata={"meaning": meaning, "low": low, "high": high, "open_low": open_low, "only": only}
    )


@dataclass(frozen=True)
class EraseSettings:
    """Settings of one erasure. Building one checks every field and reports all problems at once.

    Raises:
        SettingsError: with every value that is out of range.
    """

    # What may move
    mask: MaskKind = _setting(
        "text",
        "what may move: 'text' the layers that read the prompt; 'module', 'channel' or 'weight' what is most "
        "salient, at that granularity; 'none' every target weight",
    )
    density: float = _setting(
        0.25,
        "share of the target layers' weights that a saliency mask lets move",
        0.0,
        1.0,
        open_low=True,
        only=_SCORED,
    )
    saliency: SaliencyLoss = _setting(
        "gap",
        "loss whose gradient scores the weights: 'denoise' the distance to the noise, 'gap' that to the surrogate",
        only=_SCORED,
    )
    contrast: bool = _setting(True, "divide the score by the same score on the retain set", only=_SCORED)
    saliency_batches: int = _setting(6, "batches the saliency is summed over", 1, 10_000, only=_SCORED)
    # The adapter
    rank: Rank = _setting(
        "auto", "rank of the LoRA; auto: 8, of a list the next multiple of 8 that holds its names", 1, 1024
    )
    alpha: Alpha = _setting(
        "rank", "LoRA alpha; the update is scaled by alpha / rank; rank: as much as the rank", 0.0, 4096.0, True
    )
    # When
    timesteps: TimestepSampling = _setting("gap", "how training timesteps are drawn")
    bins: int = _setting(20, "bins of the timestep profile", 2, 1000)
    gamma: float = _setting(1.0, "exponent of the gap in p(t) for 'gap'", 0.0, 16.0, only=_BY_GAP)
    floor: float = _setting(0.3, "share of p(t) that stays uniform for 'gap'", 0.0, 1.0, only=_BY_GAP)
    window_mass: float = _setting(
        0.8, "share of the gap that the window of 'window' holds", 0.0, 1.0, True, Only("timesteps", ("window",))
    )
    threshold: float = _setting(
        0.5, "share of the largest gap that a bin of 'threshold' has", 0.0, 1.0, True, Only("timesteps", ("threshold",))
    )
    # Training
    closed_form: bool = _setting(
        True, "start from the cross-attention that solves for the surrogate, if it measures well"
    )
    prior_texts: int = _setting(
        2000,
        "generic texts that stand for all that nobody named, in the closed form; 0: none",
        0,
        1_000_000,
        only=_SOLVED,
    )
    prior_weight: float = _setting(
        20.0,
        "what they count together, in kept concepts; more in a list",
        0.0,
        1e6,
        only=_SOLVED,
    )
    steps: int = _setting(20, "most optimiser steps", 1, 1_000_000)
    batch_size: int = _setting(4, "examples a step on each side, forget and retain", 1, 4096)
    lr: LearningRate = _setting(
        "auto", "peak learning rate of AdamW, which falls by a cosine; auto: found by trials", 0.0, 1.0, open_low=True
    )
    forget_weight: float = _setting(0.3, "weight of the forget loss", 0.0, 1e6, open_low=True)
    retain_weight: float = _setting(1.0, "weight of the retain loss", 0.0, 1e6)
    adversary: Adversaries = _setting(
        "none",
        "who wants the concept back in training; 'vectors': learned ones, of what the text encoder reads and of what "
        "it has made, which are moved before each step and begin anew at each measurement",
    )
    adversary_steps: int = _setting(1, "steps of Adam it takes before each step", 1, 1000, only=_OPPOSED)
    adversary_rate: float = _setting(
        0.1,
        "their rate, in lengths of the concept's embedding; three times as much for what the text encoder reads",
        0.0,
        100.0,
        True,
        only=_OPPOSED,
    )
    adversary_reach: float = _setting(
        1.0, "how far out it begins at most, in the same lengths", 0.0, 100.0, only=_OPPOSED
    )
    measure_every: int = _setting(10, "steps between measurements of residual and drift", 1, 1_000_000)
    patience: int = _setting(3, "measurements without improvement of the residual before stopping early", 1, 1_000_000)
    min_improvement: float = _setting(0.02, "relative fall of the residual that counts as improvement", 0.0, 1.0)
    drift_price: float = _setting(
        4.0, "what drift costs in units of residual, wherever one of several results is chosen", 0.0, 1e6
    )
    failed_above: float = _setting(
        0.5,
        "residual of any concept, or mean drift, above which an erasure has failed and is not written",
        0.0,
        1e6,
        True,
    )
    enough_residual: float = _setting(0.02, "residual at which training ends, if drift is low enough too", 0.0, 1.0)
    enough_drift: float = _setting(0.01, "mean drift that is low enough for that", 0.0, 1.0)
    # Examples
    examples: int = _setting(16, "trajectories sampled on the forget side, at least two a concept", 2, 100_000)
    retain_examples: int = _setting(
        24, "trajectories sampled on the retain side, at least one a kept concept", 2, 100_000
    )
    heldout: int = _setting(8, "further trajectories that only measure, each side, at least one a concept", 1, 100_000)
    example_steps: int = _setting(8, "sampler steps, and so states, of a trajectory", 1, 999)
    guidance: float = _setting(4.0, "guidance scale of the trajectories; up to 1: none, as in diffusers", 0.0, 100.0)
    resolution: int = _setting(0, "side of the sampled pictures in pixels; 0: the model's own", 0, 8192)
    # The machine
    seed: int = _setting(0, "seed of all chance", 0, 2**31 - 1)
    dtype: Precision = _setting("auto", "precision of the forward passes; auto: bfloat16 where the device has it")
    device: Device = _setting("auto", "auto: cuda, then mps, then cpu")
    low_memory: bool = _setting(False, "gradient checkpointing, one side at a time; slower, for large models")

    def __post_init__(self) -> None:
        problems = [*field_problems(self), *_resolution_problems(self.resolution)]
        problems += _meaningless(self, {problem.split()[0] for problem in problems})
        problems += _untold_rate(self)
        if problems:
            raise SettingsError(problems)

    @property
    def opposed(self) -> bool:
        """Whether there is an adversary: then residual and drift say nothing about what training is for."""
        return self.adversary != "none"

    @property
    def lora_rank(self) -> int:
        """:attr:`rank` as a number; where it is still to be chosen, that for one name."""
        return _RANKS if self.rank == "auto" else self.rank

    @property
    def lora_alpha(self) -> float:
        """:attr:`alpha` as a number."""
        return float(self.lora_rank) if self.alpha == "rank" else self.alpha

    def for_names(self, count: int, least: int = _RANKS) -> EraseSettings:
        """These settings with a rank that is a number: if it is to be chosen, one of ``least`` or more that holds
        ``count`` names. The solution of N names has about N directions in each layer that carry it: fewer ranks lose
        names, more bring nothing (docs/explanation/choices.md)."""
        if self.rank != "auto":
            return self
        return dataclasses.replace(self, rank=max(least, -(-count // _RANKS) * _RANKS))

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> EraseSettings:
        """Settings from plain values, e.g. a YAML file's; unknown names and wrong types are problems too. ``method``
        names a set of values that the others are put on top of."""
        values = dict(values)
        if "method" in values:
            values = {**preset(values.pop("method")), **values}
        known = {f.name for f in fields(cls)}
        unknown = [
            f"unknown setting {name!r}; known: {', '.join(sorted(known))}" for name in values if name not in known
        ]
        good = {name: value for name, value in values.items() if name in known}
        try:
            settings = cls(**good)
        except SettingsError as error:
            raise SettingsError([*unknown, *error.problems]) from None
        if unknown:
            raise SettingsError(unknown)
        return settings

    @classmethod
    def from_file(cls, source: str | Path, **overrides: Any) -> EraseSettings:
        """Settings from a YAML mapping, here or in S3, with ``overrides`` on top."""
        return cls.from_mapping({**read_yaml_mapping(source), **overrides})

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return dataclasses.asdict(self)


def preset(name: Any) -> dict[str, Any]:
    """The values that a method is.

    Raises:
        SettingsError: if there is none of that name.
    """
    if name not in METHODS:
        raise SettingsError([f"method is {name!r}; allowed: {', '.join(METHODS)}"])
    return read_yaml_mapping(_PRESETS / f"{name}.yaml")


def _resolution_problems(resolution: Any) -> list[str]:
    if type(resolution) is int and resolution % 8:
        return [f"resolution is {resolution}; it must be 0 or a multiple of 8"]
    return []


def _untold_rate(settings: EraseSettings) -> list[str]:
    """Rates are found by residual and drift. A solution has least of both, so the lowest rate would win."""
    if settings.opposed and settings.lr == "auto":
        return ["lr is 'auto', but trials by residual and drift find no rate against an adversary; try lr 0.004"]
    return []


def _meaningless(settings: EraseSettings, wrong: set[str]) -> list[str]:
    """Settings other than the ``wrong`` ones that were given and would be ignored."""
    problems = []
    for f in fields(settings):
        only = f.metadata["only"]
        if only is None or {f.name, only.setting} & wrong or getattr(settings, f.name) == f.default:
            continue
        other = getattr(settings, only.setting)
        if other not in only.values:
            problems.append(
                f"{f.name} is {getattr(settings, f.name)}, but means nothing where {only.setting} is {other!r}; leave "
                f"it out, or set {only.setting} to {only.allowed}"
            )
    return problems
