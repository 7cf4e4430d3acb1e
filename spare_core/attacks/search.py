"""Prompt search: tokens before a prompt that make the erased model draw the concept again.

UnlearnDiffAtk (arXiv 2310.11868) looks for tokens under which the model predicts the *noise* that was put on a picture
of the concept, P4D (2309.06135) for those under which it predicts what the base *predicts* there. Both are looked for
as UnlearnDiffAtk does: a point on the simplex over the vocabulary for each place, of which the likeliest token is what
the model reads and what the gradient is taken at; the timesteps one after the other, until a picture drawn with what
was found shows the concept. What is found is text, so whoever can type can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spare_core.errors import TrainingError
from spare_core.method.places import unsaid
from spare_core.models.conditioning import Conditioning
from spare_core.models.unet import UNetDenoiser
from spare_core.streams import stream

AIMS: Final = ("noise", "prediction")
"""What the model is to predict: UnlearnDiffAtk's and P4D's."""
TOKENS: Final = 3
"""Before a prompt of a style or an object, as UnlearnDiffAtk has it."""
_DECAY: Final = 0.1


class Task(NamedTuple):
    """The states of one timestep ``(N, C, H, W)``, a row for each prompt, and what is to be predicted there, by aim."""

    noisy: Tensor
    timestep: int
    wanted: dict[str, Tensor]

    def of(self, rows: list[int]) -> Task:
        """Of some of the prompts."""
        return Task(self.noisy[rows], self.timestep, {aim: one[rows] for aim, one in self.wanted.items()})


class Found(NamedTuple):
    """For each prompt the ``tokens`` put before it, as the vocabulary writes them, and whether a picture showed the
    concept; how many steps were made."""

    tokens: list[list[str]]
    shown: list[bool]
    steps: int


def tasks(
    denoiser: UNetDenoiser, latents: Tensor, conditioning: Conditioning, count: int, generator: torch.Generator
) -> list[Task]:
    """``count`` timesteps, evenly spread, of pictures' ``latents`` ``(N, C, H, W)`` under their prompts; asked of the
    model as it is, which must be the base."""
    found = []
    for timestep in torch.linspace(denoiser.num_timesteps - 1, 0, count + 2)[1:-1].long().tolist():
        when = torch.full((len(latents),), timestep)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = denoiser.add_noise(latents, noise, when)
        with torch.no_grad():
            predicted = denoiser.predict(noisy.to(denoiser.device), when.to(denoiser.device), conditioning).cpu()
        wanted = {"noise": denoiser.training_target(latents, noise, when), "prediction": predicted}
        found.append(Task(noisy, timestep, wanted))
    return found


def search(
    denoiser: UNetDenoiser,
    prompts: Sequence[str],
    asked: Sequence[Task],
    aim: str,
    steps: int,
    rate: float,
    seed: int,
    resolution: int,
    seen: Callable[[Conditioning, list[int]], list[bool]],
) -> Found:
    """Look for tokens against ``denoiser`` as it is, adapters on, for all ``prompts`` at once, each for itself, in
    pictures of a ``resolution`` (0: the model's own). ``seen`` draws those of the numbers given and says in which
    pictures the concept is.

    Raises:
        TrainingError: if a loss is not finite.
    """
    generator = stream(seed, "search", aim)
    written, table = denoiser.token_vectors()
    table = table.to(denoiser.device)
    words = unsaid(denoiser, prompts, TOKENS)
    texts = [f"{' '.join(words)} {prompt}" for prompt in prompts]
    first = torch.randint(len(written), (len(prompts), TOKENS), generator=generator)
    places = F.one_hot(first, len(written)).float().to(denoiser.device).requires_grad_(True)
    optimizer = torch.optim.AdamW([places], lr=rate, weight_decay=_DECAY)
    shown, made, tokens = [False] * len(prompts), 0, first.tolist()

    def encoded(rows: list[int]) -> Conditioning:
        likeliest = F.one_hot(places[rows].argmax(dim=-1), len(written)).float()
        # What is read is the token; what has a slope is the point.
        hard = likeliest + places[rows] - places[rows].detach()
        return denoiser.encode_as([texts[row] for row in rows], words, hard @ table, resolution)

    for task in asked:
        left = [row for row, one in enumerate(shown) if not one]
        if not left:
            break
        noisy, wanted = (part[left].to(denoiser.device) for part in (task.noisy, task.wanted[aim]))
        when = torch.full((len(left),), task.timestep, device=denoiser.device)
        for _ in range(steps):
            loss = (denoiser.predict(noisy, when, encoded(left)) - wanted).square().mean(dim=(1, 2, 3)).sum()
            if not torch.isfinite(loss):
                raise TrainingError("a searched prompt's loss is not finite; try --dtype float32")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                places[left] = on_simplex(places[left])
            made += 1
        with torch.no_grad():
            for row, one in zip(left, seen(encoded(left), left), strict=True):
                shown[row], tokens[row] = one, places[row].argmax(dim=-1).tolist()
    return Found([[written[token] for token in row] for row in tokens], shown, made)


def on_simplex(points: Tensor) -> Tensor:
    """The nearest points ``(..., V)`` that are not negative and sum to 1 (arXiv 1309.1541)."""
    falling = points.sort(dim=-1, descending=True).values
    over = (falling.cumsum(dim=-1) - 1) / torch.arange(1, points.shape[-1] + 1, device=points.device)
    last = (falling > over).sum(dim=-1, keepdim=True) - 1
    return (points - over.gather(-1, last)).clamp(min=0)
