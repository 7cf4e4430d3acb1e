"""The trajectory bank: what self-distillation trains on, with every answer of its teacher.

Sampling a picture with guidance asks the frozen model, at each step, for its predictions under the prompt and under the
empty prompt. The bank keeps them with the noisy latents they were made on. On the retain side they *are* the teacher's
answers; on the forget side, whose trajectories are driven half by the concept and half by the surrogate, each step asks
under both. So no training step runs a teacher, no VAE and no text encoder runs after the bank is made, and the timestep
profile and the saliency are read off it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import EMPTY, PromptPlan
from spare_core.method.prompt_table import SURROGATE, build_prompt_table
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import Trajectory, ask_beside, noise_latents, sample_trajectories
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream


class Side(NamedTuple):
    """N noisy latents ``(N, C, H, W)`` at ``timesteps`` ``(N,)``, and what the frozen model predicts on them.

    ``student`` and ``teacher`` are rows of the prompt table: the prompt the adapter is trained under, and the one whose
    prediction it is pulled to; the same on the retain side. ``under_student``, ``under_teacher`` and ``under_empty``
    ``(N, C, H, W)`` are the frozen predictions under both and under the empty prompt. ``latents`` ``(P, C, H, W)`` are
    the pictures, ``picture`` ``(N,)`` says which one a row is on its way to.
    """

    noisy: Tensor
    timesteps: Tensor
    student: Tensor
    teacher: Tensor
    under_student: Tensor
    under_teacher: Tensor
    under_empty: Tensor
    picture: Tensor
    latents: Tensor

    def take(self, index: Tensor) -> Side:
        """The chosen rows, with all pictures."""
        return Side._make([*(part[index] for part in self[:-1]), self.latents])


@dataclass(frozen=True)
class Bank:
    """Both sides. ``names[row]`` is the concept that prompt ``row`` of the table names."""

    prompts: tuple[str, ...]
    names: tuple[str, ...]
    table: Conditioning
    null_row: int
    forget: Side
    retain: Side


def fill_bank(denoiser: Denoiser, erasures: Erasures, settings: EraseSettings, pictures: Tensor | None = None) -> Bank:
    """Let the model sample both sides (fixed seeds), ``settings.examples`` trajectories that all concepts share.

    A list of more names than half of ``settings.examples`` takes the trajectories of the surrogates, which are sampled
    for what is kept anyway, in half as many steps, and asks about each name on one of them.

    With ``pictures`` of the concept, RGB ``(N, 3, H, W)`` in [-1, 1], their noised latents take the place of the
    trajectories that the concept drives.
    """
    plan = PromptPlan(erasures, settings.seed, "train", denoiser.words())
    many, steps = pictures is None and 2 * len(erasures.names) > settings.examples, settings.example_steps
    if many:
        steps = max(1, steps // 2)
    count = settings.examples if pictures is None else max(settings.examples, 2 * len(pictures))
    forget = [] if many else plan.forget(count)
    retain = plan.retain(settings.retain_examples) + plan.generic(settings.retain_examples // 2)
    borrowed = plan.forget_beside(retain) if many else []
    further = [pair.concept for pair, _ in borrowed]
    rows, table, overwritten, held = build_prompt_table(denoiser, plan, forget, retain, settings.resolution, further)
    generator = stream(settings.seed, "bank")
    given: list[Trajectory] = []
    if pictures is not None:
        own, overwritten = overwritten[::2], overwritten[1::2]
        latents = denoiser.encode_images(pictures).cpu()
        latents = latents[torch.arange(len(own)) % len(latents)]
        given = noise_latents(denoiser, table, own, latents, settings.example_steps, generator)
    sampled = sample_trajectories(
        denoiser, table, overwritten + held, steps, settings.guidance, generator, settings.resolution
    )
    forgets, retains = given + sampled[: len(overwritten)], sampled[len(overwritten) :]
    if many:
        driven = [retains[place] for _, place in borrowed]
        forgets = ask_beside(denoiser, table, driven, [rows[pair.concept] for pair, _ in borrowed])
    return Bank(
        prompts=tuple(plan.text(prompt) for prompt in rows),
        names=tuple(prompt.name for prompt in rows),
        table=table,
        null_row=rows[EMPTY],
        forget=_side(forgets, teacher=SURROGATE),
        retain=_side(retains, teacher=0),
    )


def _side(trajectories: Sequence[Trajectory], teacher: int) -> Side:
    """All states of ``trajectories``; the first prompt asked is the student's, number ``teacher`` the teacher's."""

    def rows(place: int) -> Tensor:
        return torch.cat([torch.full_like(one.timesteps, one.query.rows[place]) for one in trajectories])

    def under(place: int) -> Tensor:
        return torch.cat([one.predictions[:, place] for one in trajectories])

    student = under(0)
    return Side(
        noisy=torch.cat([one.noisy for one in trajectories]),
        timesteps=torch.cat([one.timesteps for one in trajectories]),
        student=rows(0),
        teacher=rows(teacher),
        under_student=student,
        under_teacher=under(teacher) if teacher else student,
        under_empty=under(trajectories[0].query.empty),
        picture=torch.cat([torch.full_like(one.timesteps, i) for i, one in enumerate(trajectories)]),
        latents=torch.stack([one.latents for one in trajectories]),
    )
