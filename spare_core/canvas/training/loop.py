"""The training loop of every stage: AdamW, warm-up and cosine, EMA, checkpoints that resume exactly.

Chance comes only from a generator seeded by ``(seed, step)``, so a run that was killed and resumed draws what an
uninterrupted run would have drawn.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spare_core.models.device import choose_dtype

Loss = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """``steps`` with peak rate ``lr``; weights averaged over about ``1 / (1 - ema)`` steps; ``seed`` of all chance."""

    steps: int
    lr: float
    seed: int
    ema: float = 0.999
    warmup: int = 100
    weight_decay: float = 0.01
    every: int = 200

    def rate(self, step: int) -> float:
        """Learning rate of ``step``: linear warm-up, then half a cosine down to nothing."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def mixed(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where the device computes in it: a CPU that has to emulate it is ten times slower than in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_dtype("auto", device) is torch.bfloat16)


def train(name: str, model: nn.Module, loss_fn: Loss, schedule: Schedule, work: Path) -> None:
    """Train ``model`` in place and leave it holding its EMA weights; log to ``work/<name>.csv``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    parameters = dict(model.named_parameters())
    averages = {key: value.detach().clone() for key, value in parameters.items()}
    checkpoint = work / f"{name}.checkpoint.safetensors"
    first, spent = _resume(checkpoint, parameters, averages, optimizer)
    started, running = time.monotonic() - spent, 0.0
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = loss_fn(torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: loss is {loss.item()} at step {step}, lr {schedule.rate(step):.2e}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(schedule.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averages.values()), [p.detach() for p in parameters.values()], 1.0 - decay)
        running += loss.item()
        done = step + 1
        if done % schedule.every == 0 or done == schedule.steps:
            elapsed = time.monotonic() - started
            mean = running / (schedule.every if done % schedule.every == 0 else done % schedule.every)
            print(f"{name}: step {done}/{schedule.steps} loss {mean:.4f} {elapsed:.0f} s", flush=True)
            _log(work / f"{name}.csv", done, mean, elapsed)
            _checkpoint(checkpoint, parameters, averages, optimizer, done, elapsed)
            running = 0.0
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(averages[key])


def _log(path: Path, step: int, loss: float, seconds: float) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", "loss", "seconds"])
        writer.writerow([step, f"{loss:.5f}", f"{seconds:.0f}"])


def _checkpoint(
    path: Path,
    parameters: dict[str, nn.Parameter],
    averages: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
    step: int,
    seconds: float,
) -> None:
    tensors: dict[str, Tensor] = {}
    for key, value in parameters.items():
        state = optimizer.state[value]
        tensors[f"weight/{key}"] = value.detach().contiguous()
        tensors[f"average/{key}"] = averages[key].contiguous()
        tensors[f"first/{key}"] = state["exp_avg"].contiguous()
        tensors[f"second/{key}"] = state["exp_avg_sq"].contiguous()
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
    temporary.rename(path)


def _resume(
    path: Path, parameters: dict[str, nn.Parameter], averages: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    step = int(metadata["step"])
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(tensors[f"weight/{key}"])
            averages[key].copy_(tensors[f"average/{key}"])
            optimizer.state[value] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"first/{key}"].to(value.device),
                "exp_avg_sq": tensors[f"second/{key}"].to(value.device),
            }
    return step, float(metadata["seconds"])
