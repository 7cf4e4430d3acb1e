"""An erasure on models of Stable Diffusion's true size, with random weights: seconds, calls and memory by stage, beside
the floor that the predictions themselves set. For whoever has a GPU for ten minutes.

    python -m benchmarks.gpu sd15 sdxl canvas --output out/gpu
    python -m benchmarks.gpu sdxl --set low_memory=true --output out/gpu
    python -m benchmarks.gpu small canvas --output out/gpu              # where there is none

What is erased from random weights means nothing, and says nothing of quality; what it costs is what it costs on the
real model. Makes each model once in its folder (4 and 14 GB in half precision). *Floor*: the rows that were asked, at
the rate of the fastest call of their kind (in float32 or not, with a gradient or not); what an erasure takes above it
is launches, waiting, solving and files. A peak is of its own stage. *canvas* is erased here and in float32 on the CPU:
both must measure the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.jobs import read_settings
from benchmarks.operations import UNETS
from spare_core.canvas.protocol import CANVAS
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.erase import erase

KINDS = {"sd15": "SD 1.5, 512 x 512", "sdxl": "SDXL, 1024 x 1024"}
SIZES: dict[str, dict[str, Any]] = {
    **{kind: UNETS[title] for kind, title in KINDS.items()},
    "small": {"sample_size": 16, "cross_attention_dim": 64, "block_out_channels": (32, 64, 128, 128)},
}
_TRIED = (1, 2, 8, 32, 128)
"""Rows a call, of which the fastest sets the floor."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=[*SIZES, "canvas"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="name=value", help="settings of the erasure")
    options = parser.parse_args()
    given = read_settings(options.set)
    print(f"{torch.cuda.get_device_name() if CUDA else 'CPU'}, torch {torch.__version__}\n")
    for kind in options.kinds:
        if kind == "canvas":
            print(same_figures(options.output, given), flush=True)
        else:
            # What random weights predict cannot be erased, and no figure of it counts.
            settings = EraseSettings.from_mapping({"failed_above": 100.0, **given})
            print(measure(kind, settings, options.output), flush=True)


CUDA = torch.cuda.is_available()


class Question(NamedTuple):
    """The kind of a call: rows of the same kind take as long."""

    precise: bool
    learning: bool


class Watch:
    """Seconds, calls, rows and memory by stage, from what it is told of progress and from the UNet's calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.rows: Counter[Question] = Counter()
        self.alone: Counter[str] = Counter()
        self.peaks: dict[str, int] = {}
        self.stage, self._since = "load", time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Told of progress."""
        # The first step that is told of is over: what came before were the start and the trials.
        self.turn("steps" if stage == "distill" and done else "start" if stage == "distill" else stage)

    def turn(self, stage: str) -> None:
        """From here on it is another stage's time."""
        if CUDA:
            torch.cuda.synchronize()
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        now = time.perf_counter()
        self.seconds[self.stage] += now - self._since
        self.stage, self._since = stage, now

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Calls of any UNet are counted inside."""
        forward = UNet.forward

        @functools.wraps(forward)
        def counted(unet: Any, sample: Any, *args: Any, **named: Any) -> Any:
            result = forward(unet, sample, *args, **named)
            # A model that cannot take half precision is precise in all.
            self.rows[Question(unet.dtype is torch.float32, result.sample.requires_grad)] += len(sample)
            self.calls[self.stage] += 1
            self.alone[self.stage] += len(sample) == 1
            return result

        UNet.forward = counted
        try:
            yield
        finally:
            UNet.forward = forward


def measure(kind: str, settings: EraseSettings, output: Path) -> str:
    """One erasure as a table, and its floor."""
    model, folder, title = output / kind, output / f"{kind}-adapter", KINDS.get(kind, kind)
    if not (model / "model_index.json").exists():
        build(kind, model)
    shutil.rmtree(folder, ignore_errors=True)
    watch = Watch()
    with watch.watching():
        erasure = build_erasure(str(model), "Claude Monet", "a photograph", "style")
        manifest = erase(str(model), Erasures(erasure), settings, folder, progress=watch)
        watch.turn("end")
    denoiser = load_denoiser(str(model), low_memory=settings.low_memory)
    rates = {question: best_rate(denoiser, question, settings) for question in watch.rows}
    floor = sum(rows / rates[question] for question, rows in watch.rows.items())
    lines = [
        f"{title}: {sum(watch.seconds.values()):.1f} s in all, {manifest['training']['steps']} steps; "
        f"floor {floor:.1f} s\n",
        "| stage | s | calls | of one row | peak, GiB |",
        "|---|---|---|---|---|",
    ]
    for stage, seconds in watch.seconds.items():
        peak = f"{watch.peaks[stage] / 2**30:.1f}" if CUDA else "–"
        lines.append(f"| {stage} | {seconds:.1f} | {watch.calls[stage]} | {watch.alone[stage]} | {peak} |")
    lines += ["", "| rows | how many | a second, at best |", "|---|---|---|"]
    for question, rows in watch.rows.items():
        named = f"{'float32' if question.precise else 'half'}{', with gradient' if question.learning else ''}"
        lines.append(f"| {named} | {rows} | {rates[question]:.0f} |")
    return "\n".join([*lines, ""])


def best_rate(denoiser: UNetDenoiser, question: Question, settings: EraseSettings) -> float:
    """Rows a second of the fastest call of a kind."""
    side = denoiser.latent_shape()[-1]
    most = 2 * settings.batch_size if question.learning else denoiser.rows_at_once(side)
    with contextlib.ExitStack() as stack:
        if question.precise:
            stack.enter_context(denoiser.precise(tf32=True))
        return max(rate(denoiser, rows, question.learning) for rows in {min(rows, most) for rows in _TRIED})


def rate(denoiser: UNetDenoiser, rows: int, learning: bool) -> float:
    """Rows a second of calls of so many: the better of two, after one that does not count."""
    noisy = torch.randn(rows, *denoiser.latent_shape(), device=denoiser.device)
    when = torch.full((rows,), denoiser.num_timesteps // 2, device=denoiser.device)
    encoded = denoiser.encode_prompts([""])[[0] * rows]
    first = next(iter(denoiser.target_layers().values())).weight.requires_grad_(learning)
    best = 0.0
    for turn in range(3):
        started = time.perf_counter()
        with torch.set_grad_enabled(learning):
            found = denoiser.predict(noisy, when, encoded)
        if learning:
            found.square().mean().backward()
        if CUDA:
            torch.cuda.synchronize()
        best = max(best, rows / (time.perf_counter() - started)) if turn else best
    first.requires_grad_(False).grad = None
    return best


def same_figures(output: Path, given: dict[str, Any]) -> str:
    """Canvas's Cat here as it comes, and in float32 on the CPU."""
    lines = ["Canvas, Cat -> Dog", "", "| device | s | residual | mean drift |", "|---|---|---|---|"]
    for device, dtype in (("auto", "auto"), ("cpu", "float32")):
        settings = EraseSettings.from_mapping({**given, "device": device, "dtype": dtype})
        folder = output / f"canvas-{device}"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        found = erase("canvas", build_erasure("canvas", "Cat", "Dog", "object"), settings, folder)
        base = found["base"]
        lines.append(
            f"| {base['device']}, {base['dtype']} | {time.perf_counter() - started:.1f} | {found['residual']:.4f} "
            f"| {found['mean_drift']:.4f} |"
        )
    return "\n".join([*lines, ""])


def build(kind: str, folder: Path) -> None:
    """A pipeline directory of that size in half precision, Canvas's tokenizer in place of CLIP's."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(CANVAS.pipeline / "tokenizer")
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    device = "cuda" if CUDA else "cpu"
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip

    def text(width: int, layers: int, heads: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
            projection_dim=width, max_position_embeddings=tokenizer.model_max_length,
            **{f"{name}_token_id": value for name, value in ids.items()},
        )  # fmt: skip

    with torch.device(device):
        unet = UNet(**SIZES[kind])
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2,
            scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
        )  # fmt: skip
        first = CLIPTextModel(text(64, 2, 4) if kind == "small" else text(768, 12, 12))
        shared = {"vae": vae, "unet": unet, "text_encoder": first, "tokenizer": tokenizer, "scheduler": scheduler}
        if kind != "sdxl":
            pipeline = StableDiffusionPipeline(
                **shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        else:
            second = CLIPTextModelWithProjection(text(1280, 32, 20))
            pipeline = StableDiffusionXLPipeline(
                **shared, text_encoder_2=second, tokenizer_2=tokenizer, force_zeros_for_empty_prompt=True,
                add_watermarker=False,
            )  # fmt: skip
    pipeline.to(dtype=torch.float16).save_pretrained(folder)


if __name__ == "__main__":
    main()
