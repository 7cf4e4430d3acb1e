"""Sampling that keeps what it passes: the noisy latents of each step and every prediction made on them.

A sampler with guidance asks the frozen model at each step what it predicts under the prompt and under the empty one.
Those answers are what self-distillation needs from its teacher, at latents that sampling really passes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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

    As many are driven side by side as fit; on a GPU nothing is copied from it before they have ended.

    Raises:
        TrainingError: if a prediction is not finite.
    """
    shape = denoiser.latent_shape(resolution)
    start = torch.randn((len(queries), *shape), generator=generator)
    timesteps = path_timesteps(len(queries), steps, denoiser.num_timesteps, generator)
    asked = kept_steps(len(queries), steps, kept or steps)
    found: list[Trajectory] = []
    for chunk in _chunks(queries, denoiser.rows_at_once(shape[-1])):
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
    guided, device = guidance > 1, denoiser.device
    plan = [_plan(queries, whole, guided) for whole in asked.unbind(1)]
    # All that is known beforehand travels at once: a copy in between would wait for what was asked before it.
    indices = torch.cat([part for step in plan for part in step]).to(device)
    steps = [_Step(*parts) for parts in _split_alike(indices, plan)]
    ends = torch.full((len(queries), 1), -1)
    path = torch.cat([timesteps, ends], dim=1).to(device).unbind(1)
    noisy = start.to(device)
    states, answers = [], []
    for step, now, following in zip(steps, path[:-1], path[1:], strict=True):
        found = _predictions(denoiser, table, noisy[step.owner], now[step.owner], step.rows)
        states.append(noisy[step.kept])
        answers.append(found[step.answers])
        driven = found[step.driver]
        if guided:
            empty = found[step.empty]
            driven = empty + guidance * (driven - empty)
        noisy = denoiser.denoise(noisy, driven, now, following)
    kept, asked_of_kept, ended = torch.cat(states).cpu(), torch.cat(answers).cpu(), noisy.cpu()
    _check_finite(denoiser, asked_of_kept, ended)
    # Which trajectory each kept state is of, and each of its answers, in the order in which they were kept.
    owners = torch.cat([step.kept for step in plan])
    asking = torch.tensor([i for i in owners.tolist() for _ in queries[i].rows])
    return [
        Trajectory(
            one,
            kept[owners == i],
            timesteps[i][asked[i]],
            asked_of_kept[asking == i].unflatten(0, (-1, len(one.rows))),
            ended[i],
        )
        for i, one in enumerate(queries)
    ]


class _Step(NamedTuple):
    """What N trajectories are asked at one step: ``rows`` of the table, each on its ``owner``. ``driver`` and ``empty``
    ``(N,)`` say which of the answers drive them; ``kept`` are the trajectories whose state is kept, ``answers`` the
    answers to their whole queries, one query after the other."""

    owner: Tensor
    rows: Tensor
    driver: Tensor
    empty: Tensor
    kept: Tensor
    answers: Tensor


def _plan(queries: Sequence[Query], whole: Tensor, guided: bool) -> _Step:
    """What is asked at a step at which the queries that ``whole`` ``(N,)`` marks are asked wholly."""
    owner: list[int] = []
    rows: list[int] = []
    driver, empty, answers = [], [], []
    for i, (one, all_) in enumerate(zip(queries, whole.tolist(), strict=True)):
        drive, away = one.rows[one.driver], one.rows[one.empty]
        some = dict.fromkeys(one.rows if all_ else (drive, away) if guided else (drive,))  # each once
        place = {row: len(rows) + k for k, row in enumerate(some)}
        owner += [i] * len(some)
        rows += some
        driver.append(place[drive])
        empty.append(place.get(away, place[drive]))
        answers += [place[row] for row in one.rows] if all_ else []
    parts = (owner, rows, driver, empty, whole.nonzero().flatten().tolist(), answers)
    return _Step(*(torch.tensor(part, dtype=torch.long) for part in parts))


def _split_alike(joined: Tensor, plan: Sequence[_Step]) -> list[list[Tensor]]:
    """The parts of each step, of all of them one after the other."""
    parts = iter(joined.split([len(part) for step in plan for part in step]))
    return [[next(parts) for _ in step] for step in plan]


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
    device, parts = denoiser.device, []
    for some in calls(len(noisy), denoiser.rows_at_once(noisy.shape[-1])):
        batch = noisy[some].to(device), timesteps[some].to(device), rows[some].to(device)
        parts += [part.cpu() for part in _predict_fitting(denoiser, table, *batch)]
    found = torch.cat(parts) if parts else torch.empty_like(noisy)
    _check_finite(denoiser, found)
    return found


def _predictions(denoiser: Denoiser, table: Conditioning, noisy: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
    """The same of what lies where the model is, and left there; unchecked, since looking would wait for it."""
    parts = []
    for some in calls(len(noisy), denoiser.rows_at_once(noisy.shape[-1])):
        parts += _predict_fitting(denoiser, table, noisy[some], timesteps[some], rows[some])
    return torch.cat(parts)


def calls(count: int, most: int) -> list[slice]:
    """So many rows in calls of ``most``. A last one alone joins those before it: alone it takes as long as they."""
    ends = [*range(most, count - 1, most), count] if count > 1 else [count] * count
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _check_finite(denoiser: Denoiser, *found: Tensor) -> None:
    if not all(torch.isfinite(one).all() for one in found):
        raise TrainingError(
            f"predictions are not finite ({denoiser.dtype}); use --dtype float32, or a lower --lr if an adapter is on"
        )


def _predict_fitting(
    denoiser: Denoiser, table: Conditioning, noisy: Tensor, timesteps: Tensor, rows: Tensor
) -> list[Tensor]:
    """The same of a few at once, halved where the device's memory is too small for them."""
    try:
        return [denoiser.predict(noisy, timesteps, table[rows])]
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
