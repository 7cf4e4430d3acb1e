"""Sampling that keeps what it passes: the noisy latents of each step and every prediction made on them.

A sampler with guidance asks the frozen model at each step what it predicts under the prompt and under the empty one.
Those answers are what self-distillation needs from its teacher, at latents that sampling really passes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from spare_core.errors import TrainingError
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser


class Query(NamedTuple):
    """What the model is asked on one trajectory, as rows of a prompt table: ``rows[driver]``, guided away from
    ``rows[empty]``, drives it; the others are asked for their predictions alone."""

    rows: tuple[int, ...]
    driver: int
    empty: int


class Trajectory(NamedTuple):
    """S states that were kept of one picture's sampling. ``noisy`` ``(S, C, H, W)``; ``timesteps`` ``(S,)``, falling;
    ``predictions`` ``(S, Q, C, H, W)``, one for each row asked; ``latents`` ``(C, H, W)``, where it ended. On the
    CPU."""

    query: Query
    noisy: Tensor
    timesteps: Tensor
    predictions: Tensor
    latents: Tensor


@torch.no_grad()
def sample_trajectories(
    denoiser: Denoiser,
    table: Conditioning,
    queries: Sequence[Query],
    steps: int,
    guidance: float,
    generator: torch.Generator,
    resolution: int = 0,
    kept: int = 0,
) -> list[Trajectory]:
    """Drive one trajectory for each of ``queries``, by deterministic DDIM of ``steps`` steps, from noise at the last
    timestep, where every sampler starts.

    ``guidance`` is a pipeline's: at 1 or below the prompt alone drives, as diffusers has it.

    Each takes its other timesteps from equal parts of the noise schedule, displaced differently from the others', so
    that together they cover it. ``kept`` states of each are kept, evenly spread (:func:`kept_steps`); 0: all. Only at
    these the whole query is asked.

    Raises:
        TrainingError: if a prediction is not finite.
    """
    shape = denoiser.latent_shape(resolution)
    start = torch.randn((len(queries), *shape), generator=generator)
    timesteps = path_timesteps(len(queries), steps, denoiser.num_timesteps, generator)
    asked = kept_steps(len(queries), steps, kept or steps)
    found: list[Trajectory] = []
    for chunk in _chunks(queries, denoiser.batch_rows(shape[-1])):
        found += _drive(denoiser, table, queries[chunk], start[chunk], timesteps[chunk], asked[chunk], guidance)
    return found


def path_timesteps(count: int, steps: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """``(count, steps)`` timesteps, falling: the last one of the schedule, then one in each of ``steps - 1`` equal
    parts of what lies before it."""
    last = num_timesteps - 1
    if steps == 1:
        return torch.full((count, 1), last)
    return torch.cat([torch.full((count, 1), last), jittered_timesteps(count, steps - 1, last, generator)], dim=1)


def kept_steps(count: int, steps: int, kept: int) -> Tensor:
    """Which of its steps each trajectory keeps, bool ``(count, steps)``: ``kept`` of them at equal distances, beginning
    at the first, the second … in turn. Two that follow each other keep the same: a pair's two prompts take turns in
    driving, and what each drives must be seen at all times."""
    stride = steps // kept
    offsets = torch.arange(count) // 2 % (steps - stride * (kept - 1))
    chosen = torch.zeros(count, steps, dtype=torch.bool)
    return chosen.scatter(1, offsets[:, None] + stride * torch.arange(kept), True)


def jittered_timesteps(count: int, steps: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """``(count, steps)`` timesteps, falling: one in each of ``steps`` equal parts of ``[0, num_timesteps)``. Within the
    parts the trajectories' places are stratified too."""
    place = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    parts = torch.arange(steps - 1, -1, -1)
    return ((parts + place[:, None]) * (num_timesteps / steps)).long().clamp(max=num_timesteps - 1)


def _chunks(queries: Sequence[Query], rows: int) -> list[slice]:
    """Runs of trajectories that ask no more than ``rows`` questions a step, at least one trajectory each."""
    chunks, start, total = [], 0, 0
    for i, one in enumerate(queries):
        if total and total + len(one.rows) > rows:
            chunks.append(slice(start, i))
            start, total = i, 0
        total += len(one.rows)
    return [*chunks, slice(start, len(queries))]


def _drive(
    denoiser: Denoiser,
    table: Conditioning,
    queries: Sequence[Query],
    start: Tensor,
    timesteps: Tensor,
    asked: Tensor,
    guidance: float,
) -> list[Trajectory]:
    """N trajectories at once, from ``start`` ``(N, C, H, W)`` through ``timesteps`` ``(N, S)``, the whole query at the
    steps that ``asked`` ``(N, S)`` marks."""
    after = torch.cat([timesteps[:, 1:], torch.full((len(queries), 1), -1)], dim=1)
    noisy, guided = start, guidance > 1
    passed: list[list[tuple[Tensor, Tensor]]] = [[] for _ in queries]
    for now, following, whole in zip(timesteps.unbind(1), after.unbind(1), asked.unbind(1), strict=True):
        rows = [_distinct(one, all_, guided) for one, all_ in zip(queries, whole.tolist(), strict=True)]
        counts = [len(some) for some in rows]
        owner = torch.arange(len(queries)).repeat_interleave(torch.tensor(counts))
        found = predict_rows(denoiser, table, noisy[owner], now[owner], torch.tensor(list(chain(*rows))))
        answers = [dict(zip(some, part, strict=True)) for some, part in zip(rows, found.split(counts), strict=True)]
        for i in whole.nonzero().flatten().tolist():
            passed[i].append((noisy[i], torch.stack([answers[i][row] for row in queries[i].rows])))
        driven = torch.stack([answers[i][one.rows[one.driver]] for i, one in enumerate(queries)])
        if guided:
            empty = torch.stack([answers[i][one.rows[one.empty]] for i, one in enumerate(queries)])
            driven = empty + guidance * (driven - empty)
        noisy = denoiser.denoise(noisy, driven, now, following)
    return [
        Trajectory(
            one,
            torch.stack([state for state, _ in passed[i]]),
            timesteps[i][asked[i]],
            torch.stack([answers for _, answers in passed[i]]),
            noisy[i],
        )
        for i, one in enumerate(queries)
    ]


def _distinct(query: Query, whole: bool, guided: bool) -> list[int]:
    """The rows to ask, each once: all, or those that drive."""
    drive = (query.rows[query.driver], query.rows[query.empty])
    return list(dict.fromkeys(query.rows if whole else drive if guided else drive[:1]))


@torch.no_grad()
def ask_beside(
    denoiser: Denoiser, table: Conditioning, trajectories: Sequence[Trajectory], rows: Sequence[int]
) -> list[Trajectory]:
    """The same trajectories, each asked under one more row, which comes first among its answers."""
    noisy, timesteps = (
        torch.cat([one.noisy for one in trajectories]),
        torch.cat([one.timesteps for one in trajectories]),
    )
    counts = [len(one.timesteps) for one in trajectories]
    owners = torch.tensor(rows).repeat_interleave(torch.tensor(counts))
    answers = predict_rows(denoiser, table, noisy, timesteps, owners).split(counts)
    return [
        one._replace(
            query=Query((row, *one.query.rows), one.query.driver + 1, one.query.empty + 1),
            predictions=torch.cat([answer[:, None], one.predictions], dim=1),
        )
        for one, row, answer in zip(trajectories, rows, answers, strict=True)
    ]


@torch.no_grad()
def noise_latents(
    denoiser: Denoiser,
    table: Conditioning,
    queries: Sequence[Query],
    latents: Tensor,
    steps: int,
    generator: torch.Generator,
) -> list[Trajectory]:
    """Trajectories of given pictures: ``latents`` ``(N, C, H, W)``, one for each of ``queries``, noised anew at each of
    ``steps`` timesteps."""
    timesteps = jittered_timesteps(len(queries), steps, denoiser.num_timesteps, generator)
    found = []
    for one, clean, now in zip(queries, latents, timesteps, strict=True):
        noise = torch.randn((steps, *clean.shape), generator=generator)
        noisy = denoiser.add_noise(clean.expand(steps, *clean.shape), noise, now)
        owner = torch.arange(steps).repeat_interleave(len(one.rows))
        rows = torch.tensor(one.rows).repeat(steps)
        answers = predict_rows(denoiser, table, noisy[owner], now[owner], rows)
        found.append(Trajectory(one, noisy, now, answers.unflatten(0, (steps, len(one.rows))), clean))
    return found


def predict_rows(denoiser: Denoiser, table: Conditioning, noisy: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
    """Predictions on ``noisy`` ``(N, C, H, W)``, each under its row of ``table``, as many at once as fit; on the CPU.

    Raises:
        TrainingError: if one is not finite.
        torch.OutOfMemoryError: if not even one fits.
    """
    parts = []
    for index in torch.arange(len(noisy)).split(denoiser.batch_rows(noisy.shape[-1])):
        parts += _predict_fitting(denoiser, table, noisy[index], timesteps[index], rows[index])
    found = torch.cat(parts)
    if not torch.isfinite(found).all():
        raise TrainingError(
            f"predictions are not finite ({denoiser.dtype}); use --dtype float32, or a lower --lr if an adapter is on"
        )
    return found


def _predict_fitting(
    denoiser: Denoiser, table: Conditioning, noisy: Tensor, timesteps: Tensor, rows: Tensor
) -> list[Tensor]:
    """The same of a few at once, halved where the device's memory is too small for them."""
    try:
        return [denoiser.predict(noisy.to(denoiser.device), timesteps.to(denoiser.device), table[rows]).cpu()]
    except torch.OutOfMemoryError:
        if len(noisy) == 1:
            raise
    # Only here, when the error and the tensors that its frames hold are gone.
    half = len(noisy) // 2
    warnings.warn(f"{len(noisy)} predictions at once do not fit into the memory; {half} are tried", stacklevel=4)
    return [
        part
        for some in (slice(None, half), slice(half, None))
        for part in _predict_fitting(denoiser, table, noisy[some], timesteps[some], rows[some])
    ]
