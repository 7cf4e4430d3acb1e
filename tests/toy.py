"""A denoiser of fifteen weights whose every prediction, loss and gradient can be worked out by hand.

The prediction is ``x_t mix^T + e text^T``, the second part times ``t / T`` if ``timed``. ``mix`` is (3, 3), ``text`` is
(3, 2). Latents are (N, 3, 1, 1), prompt embeddings (N, 1, 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spare_core.denoiser import Conditioning
from spare_core.examples import NULL, Examples, Side

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
    """Implements :class:`spare_core.denoiser.Denoiser` as far as the mathematics needs it; remembers every call."""

    device = torch.device("cpu")
    dtype = torch.float32
    num_timesteps = 10
    lora_prefix = "toy"

    def __init__(self, *, timed: bool = False, velocity: bool = False) -> None:
        torch.manual_seed(0)
        self.weights = _Weights().requires_grad_(False)
        self.timed, self.velocity = timed, velocity
        self.calls: list[Call] = []
        self.noises: list[tuple[Tensor, Tensor]] = []

    def target_layers(self) -> dict[str, nn.Linear]:
        return {"mix": self.weights.mix, "text": self.weights.text}

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        self.noises.append((latents, noise))
        signal = (1 - timesteps / self.num_timesteps)[:, None, None, None]
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def training_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents if self.velocity else noise

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        embeds = conditioning.prompt_embeds.flatten(1)
        self.calls.append(Call(noisy.flatten(1), timesteps, embeds))
        spoken = self.weights.text(embeds)
        if self.timed:
            spoken = spoken * (timesteps / self.num_timesteps)[:, None]
        return (self.weights.mix(noisy.flatten(1)) + spoken)[:, :, None, None]


def toy_side(student: Sequence[int], teacher: Sequence[int], seed: int) -> Side:
    """Random latents, one for each row asked for."""
    latents = torch.randn(len(student), 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    pair = (torch.full((len(student),), CONCEPT), torch.full((len(student),), SURROGATE))
    return Side(latents, torch.tensor(student), torch.tensor(teacher), *pair)


def toy_examples(embeddings: Tensor = EMBEDDINGS) -> Examples:
    """Erase Neon Lines in favour of Photo, keep Rust."""
    kept = [SURROGATE, KEPT, NULL_ROW, KEPT, SURROGATE, NULL_ROW]
    return Examples(
        prompts=tuple(f"in {name} style" if name else NULL for name in NAMES),
        names=NAMES,
        table=Conditioning(embeddings[:, None, :]),
        null_row=NULL_ROW,
        forget=toy_side([CONCEPT] * 5, [SURROGATE] * 5, seed=1),
        retain=toy_side(kept, kept, seed=2),
        forget_heldout=toy_side([CONCEPT] * 4, [SURROGATE] * 4, seed=3),
        retain_heldout=toy_side(kept, kept, seed=4),
    )
