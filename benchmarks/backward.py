"""One batch of both sides against one backward pass a side: time and activation memory of a training step.

    python -m benchmarks.backward

Each way runs in a process of its own, because a process's peak memory never falls.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.method.bank import fill_bank
from spare_core.method.batches import Batches
from spare_core.method.distill import training_step
from spare_core.method.gap import profile_timesteps
from spare_core.method.masks import whole_layers
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.runs.stages import peak_memory

STEPS = 6


def main() -> None:
    if len(sys.argv) == 1:
        for batch_size in (8, 64):
            lines = [
                subprocess.run(
                    [sys.executable, __file__, way, str(batch_size)], check=True, capture_output=True, text=True
                ).stdout.strip()
                for way in ("joint", "split")
            ]
            print(f"{batch_size} + {batch_size} examples: {'; '.join(lines)}")
        return
    way, batch_size = sys.argv[1], int(sys.argv[2])
    settings = EraseSettings(mask="none", batch_size=batch_size, examples=2, retain_examples=2)
    denoiser = load_denoiser("canvas", "cpu")
    bank = fill_bank(denoiser, Erasures(build_erasure("canvas", "Rust", "Bricks")), settings)
    layers = denoiser.target_layers()
    adapter = Adapter.initialise(denoiser, whole_layers(layers, layers), settings.lora_rank, settings.lora_alpha, 0)
    batches = Batches(bank, profile_timesteps(bank, denoiser.num_timesteps, settings.bins), settings)
    # Of what low_memory does, only the two passes: checkpointing is a matter of its own.
    settings = dataclasses.replace(settings, low_memory=way == "split")
    before, seconds = peak_memory(denoiser.device)["host"], []
    for step in range(STEPS):
        started = time.perf_counter()
        training_step(denoiser, batches, adapter, step, settings, rate=0.0)
        seconds.append(time.perf_counter() - started)
    grown = peak_memory(denoiser.device)["host"] - before
    print(f"{way} {statistics.median(seconds[1:]):.3f} s a step, peak memory +{grown >> 20} MiB")


if __name__ == "__main__":
    main()
