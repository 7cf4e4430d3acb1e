"""Where an erasure of Canvas spends its time: by stage, and by kind of operation inside the UNet.

    python -m benchmarks.where_time_goes

On paper, for models that do not fit here, see benchmarks/operations.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.whole_process import erase_cat
from spare_core.adapters.low_rank import Adapter
from spare_core.method.masks import whole_layers
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.stages import make_repeatable

KINDS = {
    "convolutions": ("convolution",),
    "matrix products of layers": ("addmm", "aten::mm"),
    "attention products, softmax": ("bmm", "softmax"),
    "norms": ("group_norm", "layer_norm"),
    "activations": ("gelu", "silu", "sigmoid", "aten::mul"),
    "copies, sums": ("copy_", "aten::add", "aten::sum", "aten::cat", "aten::fill_"),
}
REPEATS = 10


def main() -> None:
    by_stage()
    make_repeatable()
    canvas = load_denoiser("canvas", "cpu", "float32")
    prompts = canvas.encode_prompts(["A Cat image in Rust style."])
    layers = canvas.target_layers()
    adapter = Adapter.initialise(canvas, whole_layers(layers, canvas.text_layers()), 8, 8.0, 0)

    def asked(rows: int) -> torch.Tensor:
        noisy = torch.zeros(rows, *canvas.latent_shape())
        return canvas.predict(noisy, torch.full((rows,), 500), prompts[[0] * rows])

    def sampling() -> None:
        with torch.no_grad():
            asked(32)

    def step() -> None:
        with adapter.attached(canvas):
            asked(8).pow(2).mean().backward()

    print("\n| of the UNet's time | 32 predictions | 8 predictions and their gradient |\n|---|---|---|")
    spent = [by_kind(sampling), by_kind(step)]
    for kind in (*KINDS, "the rest"):
        print(f"| {kind} | " + " | ".join(f"{100 * one[kind] / sum(one.values()):.0f} %" for one in spent) + " |")
    print("| ms | " + " | ".join(f"{1000 * sum(one.values()):.0f}" for one in spent) + " |")
    print(f"\nkeys and values of the prompts: {100 * share_of_prompts(canvas, asked):.1f} % of 32 predictions")


def by_stage() -> None:
    """Seconds of a whole process, stage by stage."""
    with tempfile.TemporaryDirectory() as folder:
        run = erase_cat(Path(folder) / "adapter")
    stages = run.manifest["seconds"]
    print("| stage | s |\n|---|---|")
    print(f"| start, imports, loading, end | {run.seconds - sum(stages.values()):.1f} |")
    for name, spent in stages.items():
        print(f"| {name} | {spent:.1f} |")
    print(f"| whole | {run.seconds:.1f} |")


def by_kind(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of one call, by kind of operation."""
    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(REPEATS):
            work()
    found = dict.fromkeys((*KINDS, "the rest"), 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "the rest")
        found[kind] += event.self_cpu_time_total / 1e6 / REPEATS
    return found


def share_of_prompts(canvas: UNetDenoiser, asked: Callable[[int], torch.Tensor]) -> float:
    """Share of a prediction that projects prompts to keys and values: what keeping those of constant prompts would
    save."""
    spent, marks = [0.0], [0.0]
    hooks = []
    for layer in canvas.text_layers().values():
        hooks += [
            layer.register_forward_pre_hook(lambda *args: marks.__setitem__(0, time.perf_counter())),
            layer.register_forward_hook(lambda *args: spent.__setitem__(0, spent[0] + time.perf_counter() - marks[0])),
        ]
    with torch.no_grad():
        asked(32)
        spent[0], started = 0.0, time.perf_counter()
        for _ in range(REPEATS):
            asked(32)
        share = spent[0] / (time.perf_counter() - started)
    for hook in hooks:
        hook.remove()
    return share


if __name__ == "__main__":
    main()
