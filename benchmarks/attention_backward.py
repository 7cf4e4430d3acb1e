"""Fused against plain attention in a training step on a CPU: why load_denoiser takes the plain one there.

python -m benchmarks.attention_backward
"""

from __future__ import annotations

import statistics
import time

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from spare_core.models.loading import load_denoiser

REPEATS = 8
BATCH = 16


def main() -> None:
    denoiser = load_denoiser("canvas", "cpu")
    conditioning = denoiser.encode_prompts(["A Cat image in Rust style."] * BATCH)
    noisy = torch.randn(BATCH, denoiser.weights.config.in_channels, 8, 8, requires_grad=True)
    timesteps = torch.full((BATCH,), 500)
    seconds: dict[str, list[float]] = {"fused": [], "plain": []}
    # Turn by turn, so that a noisy machine slows both alike.
    for repeat in range(REPEATS + 1):
        for name, processor in (("fused", AttnProcessor2_0()), ("plain", AttnProcessor())):
            denoiser.weights.set_attn_processor(processor)
            started = time.perf_counter()
            denoiser.predict(noisy, timesteps, conditioning).pow(2).mean().backward()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(", ".join(f"{name} {1000 * median:.0f} ms" for name, median in medians.items()))
    print(f"fused / plain = {medians['fused'] / medians['plain']:.2f}")


if __name__ == "__main__":
    main()
