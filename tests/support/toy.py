"""A denoiser of fifteen weights whose every prediction, loss and gradient can be worked out by hand.

The prediction is ``x_t mix^T + e text^T``, the second part times ``t / T`` if ``timed``. ``mix`` is (3, 3), ``text`` is
(3, 2). Latents are (N, 3, 1, 1), prompt embeddings (N, 1, 2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spare_core.concepts.prompts import NULL
from spare_core.method.bank import Bank, Side
from spare_core.method.probes import HeldOut, Probe
from spare_core.models.conditioning import Conditioning

NULL_ROW, CONCEPT, SURROGATE, KEPT = range(4)
NAMES = (NULL, "Neon Lines", "Photo", "Rust")
EMBEDDINGS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 2.0]])


class Call(NamedTuple):
    """What one prediction was asked for."""

    noisy: Tensor
    timesteps: Tensor
    embeds: Tensor


class _Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3, bias=False)
        self.text = nn.Linear(2, 3, bias=False)


class ToyDenoiser:
    """Implements :class:`spare_core.models.denoiser.Denoiser` as far as the mathematics needs it; remembers every
    call."""

    device = torch.device("cpu")
    dtype = torch.float32
    num_timesteps = 10
    lora_prefix = "toy"

    def __init__(self, *, timed: bool = False, velocity: bool = False, rows_at_once: int = 64) -> None:
        torch.manual_seed(0)
        self.weights = _Weights().requires_grad_(False)
        self.timed, self.velocity, self._rows = timed, velocity, rows_at_once
        self.calls: list[Call] = []

    def target_layers(self) -> dict[str, nn.Linear]:
        return {"mix": self.weights.mix, "text": self.weights.text}

    def text_layers(self) -> dict[str, nn.Linear]:
        return {"text": self.weights.text}

    def precise(self, tf32: bool = False) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def words(self) -> list[str]:
        return []

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal = self._signal(timesteps)
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def noise_in(self, noisy: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        signal = self._signal(timesteps)
        return (noisy - signal.sqrt() * latents) / (1 - signal).sqrt()

    def denoise(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, following: Tensor) -> Tensor:
        now, then = self._signal(timesteps), self._signal(following)
        clean = (noisy - (1 - now).sqrt() * prediction) / now.sqrt()
        return then.sqrt() * clean + (1 - then).sqrt() * prediction

    def _signal(self, timesteps: Tensor) -> Tensor:
        """1 before the first timestep, so that sampling ends on the picture."""
        return (1 - (timesteps + 1) / (self.num_timesteps + 1))[:, None, None, None]

    def latent_shape(self, resolution: int = 0) -> tuple[int, int, int]:
        return (3, 1, 1)

    def rows_at_once(self, latent_side: int) -> int:
        return self._rows

    def training_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents if self.velocity else noise

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        embeds = conditioning.prompt_embeds.flatten(1)
        self.calls.append(Call(noisy.flatten(1), timesteps, embeds))
        spoken = self.weights.text(embeds)
        if self.timed:
            spoken = spoken * (timesteps / self.num_timesteps)[:, None]
        return (self.weights.mix(noisy.flatten(1)) + spoken)[:, :, None, None]


def toy_side(denoiser: ToyDenoiser, student: Sequence[int], teacher: Sequence[int], seed: int,
             embeddings: Tensor = EMBEDDINGS) -> Side:  # fmt: skip
    """Random latents, noised at timesteps that are spread over the schedule, one for each row asked for."""
    generator = torch.Generator().manual_seed(seed)
    count = len(student)
    latents = torch.randn(count, 3, 1, 1, generator=generator)
    timesteps = torch.arange(count) * denoiser.num_timesteps // count
    noisy = denoiser.add_noise(latents, torch.randn(latents.shape, generator=generator), timesteps)
    own, theirs = torch.tensor(student), torch.tensor(teacher)

    def under(rows: Tensor) -> Tensor:
        found = denoiser.predict(noisy, timesteps, Conditioning(embeddings[rows][:, None]))
        denoiser.calls.pop()
        return found

    null = torch.full_like(own, NULL_ROW)
    return Side(noisy, timesteps, own, theirs, under(own), under(theirs), under(null), torch.arange(count), latents)


KEPT_ROWS = (SURROGATE, KEPT, NULL_ROW, KEPT, SURROGATE, NULL_ROW)


def toy_bank(denoiser: ToyDenoiser, embeddings: Tensor = EMBEDDINGS) -> Bank:
    """Erase Neon Lines in favour of Photo, keep Rust."""
    return Bank(
        prompts=tuple(f"in {name} style" if name else NULL for name in NAMES),
        names=NAMES,
        table=Conditioning(embeddings[:, None, :]),
        null_row=NULL_ROW,
        forget=toy_side(denoiser, [CONCEPT] * 5, [SURROGATE] * 5, 1, embeddings),
        retain=toy_side(denoiser, KEPT_ROWS, KEPT_ROWS, 2, embeddings),
    )


def toy_held_out(denoiser: ToyDenoiser) -> HeldOut:
    """Probes of the same erasure; the unit of drift is that of all rows of the retain side."""
    forget = toy_side(denoiser, [CONCEPT] * 4, [SURROGATE] * 4, 3)
    retain = toy_side(denoiser, KEPT_ROWS, KEPT_ROWS, 4)
    pair = (toy_side(denoiser, [row] * len(KEPT_ROWS), KEPT_ROWS, 4).under_student for row in (CONCEPT, SURROGATE))
    probes = [
        Probe(side.noisy, side.timesteps, side.student, side.under_teacher, unit)
        for side, unit in (
            (forget, (forget.under_student - forget.under_teacher).pow(2).flatten(1).mean(dim=1)),
            (retain, (next(pair) - next(pair)).pow(2).mean().expand(len(KEPT_ROWS))),
        )
    ]
    return HeldOut(NAMES, Conditioning(EMBEDDINGS[:, None, :]), *probes)
