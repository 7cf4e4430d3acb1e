"""An erasure on models of Stable Diffusion's true size, with random weights: seconds and memory by stage, on a GPU.

    python -m benchmarks.true_size sd15 sdxl --output out/true-size

What is erased means nothing, and says nothing of quality; what it costs is what it costs on the real model. Makes each
model once in its folder (4 and 14 GB in half precision).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.operations import UNETS
from spare_core.canvas.protocol import CANVAS
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.method.settings import EraseSettings
from spare_core.runs.erase import erase
from spare_core.runs.progress import ProgressDisplay

KINDS = {"sd15": "SD 1.5, 512 x 512", "sdxl": "SDXL, 1024 x 1024"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="name=value", help="settings of the erasure")
    options = parser.parse_args()
    settings = EraseSettings.from_mapping(dict(json_value(pair) for pair in options.set))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for kind in options.kinds:
        model = options.output / kind
        if not (model / "model_index.json").exists():
            build(kind, model)
        shutil.rmtree(options.output / f"{kind}-adapter", ignore_errors=True)
        torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
        started = time.perf_counter()
        erasure = build_erasure(str(model), "Claude Monet", "a photograph", "style")
        output = options.output / f"{kind}-adapter"
        with ProgressDisplay() as progress:
            manifest = erase(str(model), Erasures(erasure), settings, output, progress=progress)
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in manifest["seconds"].items())
        memory = ", ".join(f"{place} {size / 2**30:.1f} GiB" for place, size in manifest["peak_memory_bytes"].items())
        whole = time.perf_counter() - started
        print(f"{KINDS[kind]} on {device}: {whole:.1f} s in all ({stages}); peak {memory}; steps "
              f"{manifest['training']['steps']}", flush=True)  # fmt: skip


def json_value(pair: str) -> tuple[str, Any]:
    name, _, value = pair.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def build(kind: str, folder: Path) -> None:
    """A pipeline directory of that size in half precision, Canvas's tokenizer in place of CLIP's."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(CANVAS.pipeline / "tokenizer")
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
        unet = UNet(**UNETS[KINDS[kind]])
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2,
            scaling_factor=0.18215 if kind == "sd15" else 0.13025,
        )  # fmt: skip
        first = CLIPTextModel(text(768, 12, 12))
        shared = {"vae": vae, "unet": unet, "text_encoder": first, "tokenizer": tokenizer, "scheduler": scheduler}
        if kind == "sd15":
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
