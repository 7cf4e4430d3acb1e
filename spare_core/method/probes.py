"""Probes: what a measurement asks again with an adapter on. Held-out contexts, generic texts and noise that no training
sees, with the frozen model's answers, at timesteps spread over the schedule.

There are two sets, in contexts of their own: by the one everything is chosen, start, rate and result; the other one is
asked once, at the end, and is what is reported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import EMPTY, PromptPlan, Purpose
from spare_core.errors import InputError
from spare_core.method.neighbours import nearest_unnamed
from spare_core.method.prompt_table import CONCEPT, SURROGATE, build_prompt_table
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import Trajectory, ask_beside, predict_rows, sample_trajectories
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream

NO_DIFFERENCE = (
    "the model predicts the same noise for the concept and its surrogate: it does not know one of them, so there is "
    "nothing to erase; check the spelling or choose another surrogate"
)


_TEXTS: Final = 6
"""Generic texts for each trajectory of a side, up to the most."""
_MOST_TEXTS: Final = 48
_TEXTS_OF_A_LIST: Final = 192
"""Generic texts beside a list of more names than are asked about twice. Few of them drift far: of two sets of 48 one
reads twice what the other does."""
_NEAR: Final = 3
"""Nearest words for each erased concept."""
_NEAR_EACH: Final = 2
"""Trajectories of each such word."""
_AGAIN: Final = 4
"""Trajectories of a name that is asked about once more."""


class Probe(NamedTuple):
    """What is asked again with an adapter on: M noisy latents ``(M, C, H, W)`` at ``timesteps`` ``(M,)`` under rows
    ``prompt`` ``(M,)`` of the prompt table, and ``teacher`` ``(M, C, H, W)``, the frozen predictions that the adapter
    should reproduce. ``unit`` ``(M,)`` is ||eps(c) - eps(s)||^2: of each row on the forget side, its mean on the
    other."""

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


def draw_held_out(
    denoiser: Denoiser, erasures: Erasures, settings: EraseSettings, purpose: Purpose, each: int = 1
) -> HeldOut:
    """Sample both sides in contexts and from noise that no training sees, and keep the frozen model's answers:
    ``settings.heldout`` trajectories a side, at least ``each`` of every concept, erased or kept, and to report on also
    a few of the nearest words that nobody named. Generic texts differ by more than states do: there are many, each
    asked at one state of another's trajectory.

    Trajectories are sampled as a picture is, ``settings.example_steps`` steps from noise; half of their states are
    kept, spread over all of the schedule. In a list of more names than ``settings.heldout`` each name is asked about on
    a trajectory of its surrogate, which an erased model passes through and which is sampled for what is kept anyway, in
    half as many steps. And it is chosen by in all contexts that are solved for: single trajectories in the two or three
    that are set aside for it say more of these contexts than of the list (docs/failures.md).

    Raises:
        InputError: if concept and surrogate are the same to the frozen model.
    """
    many = asked_once(len(erasures.names), settings)
    contexts: Purpose = "solve" if many and purpose == "choose" else purpose
    plan = PromptPlan(erasures, settings.seed, contexts, denoiser.words())
    steps, states = settings.example_steps, max(1, settings.example_steps // 2)
    if many:
        steps, states = states, states if purpose == "report" else max(1, states // 2)
    forget = [] if many else plan.forget(max(settings.heldout, each * len(erasures)))
    retain = plan.retain(max(settings.heldout, each * len(plan.kept())))
    borrowed = plan.forget_beside(retain) if many else []
    if purpose == "report":
        retain += plan.near(nearest_unnamed(denoiser, erasures, settings, _NEAR), 1 if many else _NEAR_EACH)
    texts = plan.generic(_TEXTS_OF_A_LIST if many else min(_TEXTS * settings.heldout, _MOST_TEXTS))
    beside = plan.pairs_beside(retain)
    further = [*(prompt for pair in beside for prompt in pair), *(pair.concept for pair, _ in borrowed), *texts]
    rows, table, overwritten, held = build_prompt_table(denoiser, plan, forget, retain, settings.resolution, further)
    generator = stream(settings.seed, "probes", purpose)
    with denoiser.precise(tf32=purpose == "choose"):
        drawn = sample_trajectories(
            denoiser, table, overwritten + held, steps, settings.guidance, generator, settings.resolution, kept=states
        )
        forgets, retains = drawn[: len(forget)], drawn[len(forget) :]
        if many:
            driven = [retains[place] for _, place in borrowed]
            forgets = ask_beside(denoiser, table, driven, [rows[pair.concept] for pair, _ in borrowed])
            forget = [pair for pair, _ in borrowed]
        # One state of each retained trajectory, at all of its timesteps in turn, also answers for the empty prompt and
        # for the pair whose gap is the unit of drift.
        singles = [(one, i % states) for i, one in enumerate(retains)]
        lent = [(retains[i % len(retains)], (i + i // len(retains)) % states) for i in range(len(texts))]
        spoken = [*(pair.concept for pair in beside), *(pair.surrogate for pair in beside), *texts]
        answers = _ask(denoiser, table, singles * 2 + lent, [rows[prompt] for prompt in spoken])
        concepts, surrogates, under_texts = answers.split([len(singles), len(singles), len(texts)])
    asked = _forget_probe(forgets)
    driven_by = [pair.concept.name for pair in forget for _ in range(states)]
    for name in dict.fromkeys(driven_by):
        if not asked.unit[torch.tensor([other == name for other in driven_by])].any():
            raise InputError(f"{name!r}: {NO_DIFFERENCE}")
    prompts = [rows[prompt] for prompt in retain for _ in range(states)] + [rows[EMPTY]] * len(singles)
    prompts += [rows[text] for text in texts]
    return HeldOut(
        names=tuple(prompt.name for prompt in rows),
        table=table,
        forget=asked,
        retain=Probe(
            noisy=torch.cat([*(one.noisy for one in retains), *(one.noisy[[i]] for one, i in singles + lent)]),
            timesteps=torch.cat(
                [*(one.timesteps for one in retains), *(one.timesteps[[i]] for one, i in singles + lent)]
            ),
            prompt=torch.tensor(prompts),
            teacher=torch.cat(
                [
                    *(one.predictions[:, 0] for one in retains),
                    *(one.predictions[[i], 1] for one, i in singles),
                    under_texts,
                ]
            ),
            unit=mean_square(concepts - surrogates).mean().expand(len(prompts)),
        ),
    )


def asked_once(names: int, settings: EraseSettings) -> bool:
    """Whether so many names are a long list, each of which is asked about on one trajectory."""
    return names > settings.heldout


def draw_again(denoiser: Denoiser, erasures: Erasures, settings: EraseSettings, names: Collection[str]) -> HeldOut:
    """Probes of ``names`` alone, to report on: each on four trajectories of its own, two of which its surrogate drives.
    Nothing is kept, so nothing drifts."""
    plan = PromptPlan(erasures, settings.seed, "report", denoiser.words())
    pairs = plan.forget(_AGAIN * len(names), names)
    rows, table, queries, _ = build_prompt_table(denoiser, plan, pairs, [], settings.resolution)
    generator = stream(settings.seed, "probes", "again")
    states = max(1, settings.example_steps // 2)
    with denoiser.precise():
        forgets = sample_trajectories(
            denoiser, table, queries, settings.example_steps, settings.guidance, generator, settings.resolution, states
        )
    asked = _forget_probe(forgets)
    none = Probe(*(part[:0] for part in asked))
    return HeldOut(tuple(prompt.name for prompt in rows), table, asked, none)


def _forget_probe(trajectories: Sequence[Trajectory]) -> Probe:
    """All states of ``trajectories``, each asked under a concept and its surrogate."""
    concept, surrogate = (
        torch.cat([one.predictions[:, place] for one in trajectories]) for place in (CONCEPT, SURROGATE)
    )
    return Probe(
        noisy=torch.cat([one.noisy for one in trajectories]),
        timesteps=torch.cat([one.timesteps for one in trajectories]),
        prompt=torch.cat([torch.full_like(one.timesteps, one.query.rows[CONCEPT]) for one in trajectories]),
        teacher=surrogate,
        unit=mean_square(concept - surrogate),
    )


def _ask(denoiser: Denoiser, table: Conditioning, states: Sequence[tuple[Trajectory, int]], rows: list[int]) -> Tensor:
    """The predictions at single states of trajectories, each under its row."""
    if not states:
        return torch.empty(0)
    noisy, timesteps = (
        torch.stack([one.noisy[i] for one, i in states]),
        torch.stack([one.timesteps[i] for one, i in states]),
    )
    return predict_rows(denoiser, table, noisy, timesteps, torch.tensor(rows))


def mean_square(difference: Tensor) -> Tensor:
    """The mean square of each row, ``(N,)`` float64."""
    return difference.double().pow(2).flatten(1).mean(dim=1)
