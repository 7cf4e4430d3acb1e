"""Make a model like Canvas of other widths, to try defaults on that were not chosen for it.

    python -m benchmarks.other_widths --widths 32 64 --output out/narrow

A fresh UNet of those channels learns Canvas's own predictions on pictures that Canvas draws; text encoder and VAE stay
Canvas's. Resumes; 2,000 steps of these widths took 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from spare_core.canvas.grid import GUIDANCE, TEMPLATE
from spare_core.canvas.protocol import OBJECTS, STYLES
from spare_core.canvas.training.loop import Schedule, train
from spare_core.files.atomic import read_tensors, write_tensors
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser

BATCH = 48
NULL_SHARE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs=2, required=True, help="channels of the two blocks")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=4, help="of each object in each style")
    parser.add_argument("--output", type=Path, required=True, help="the pipeline directory; work files lie beside it")
    options = parser.parse_args()
    work = options.output.with_name(options.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    canvas = load_denoiser("canvas", precision="float32")
    prompts = [TEMPLATE.format(object=o, style=s) for o, s in itertools.product(OBJECTS, STYLES)]
    latents = _pictures(canvas, prompts, options.pictures, work)
    conditioning = canvas.encode_prompts([*prompts, ""]).prompt_embeds
    unet = UNet2DConditionModel.from_config({**canvas.weights.config, "block_out_channels": tuple(options.widths)})
    unet.set_attn_processor(AttnProcessor())  # as in Canvas's own training

    def loss_fn(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        rows = index % len(prompts)
        rows[torch.rand(BATCH, generator=generator) < NULL_SHARE] = len(prompts)
        timesteps = torch.randint(canvas.num_timesteps, (BATCH,), generator=generator)
        noise = torch.randn((BATCH, *latents.shape[1:]), generator=generator)
        noisy = canvas.add_noise(latents[index], noise, timesteps)
        with torch.no_grad():
            taught = canvas.weights(noisy, timesteps, conditioning[rows]).sample
        return (unet(noisy, timesteps, conditioning[rows]).sample - taught).pow(2).mean()

    train("unet", unet, loss_fn, Schedule(steps=options.steps, lr=1e-3, seed=0, ema=0.998), work)
    canvas.pipeline.unet = unet
    canvas.pipeline.save_pretrained(options.output)
    print(f"wrote {options.output}: {sum(p.numel() for p in unet.parameters()):,} weights in the UNet")


def _pictures(canvas: UNetDenoiser, prompts: list[str], count: int, work: Path) -> Tensor:
    """``count`` latents of each prompt, ``(count * P, C, H, W)``: the first of each, then the second, and so on."""
    path = work / f"latents-{count}.safetensors"
    if not path.exists():
        seeds = [1000 + i for i in range(count * len(prompts))]
        drawn = canvas.generate(prompts * count, seeds, steps=12, guidance=GUIDANCE)
        write_tensors(path, {"latents": drawn})
    return read_tensors(path)[0]["latents"]


if __name__ == "__main__":
    main()
