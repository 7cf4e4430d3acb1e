"""What diffusers does with our files, without us: this module imports nothing of SPARE and also runs as a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

PROMPTS = ["a cat image in rust style.", "a dog"]
TIMESTEPS = torch.tensor([20, 700])


class StockPredictions(NamedTuple):
    """``(2, 4, 16, 16)`` each: before loading, with the LoRA, after unloading; were the weights restored exactly?"""

    base: Tensor
    loaded: Tensor
    unloaded: Tensor
    restored: bool


def noise() -> Tensor:
    """The x_t of every probe."""
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(7))


def load_pipeline(model: Path) -> Any:
    """The pipeline in float32, diffusers' default."""
    pipeline = DiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def predict(pipeline: Any) -> Tensor:
    """The UNet's prediction for :data:`PROMPTS` at :data:`TIMESTEPS`."""
    encoded = pipeline.encode_prompt(
        PROMPTS, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    added = None
    if hasattr(pipeline, "text_encoder_2"):
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        time_ids = torch.tensor([[side, side, 0, 0, side, side]] * 2, dtype=torch.float32)
        added = {"text_embeds": encoded[2], "time_ids": time_ids}
    return pipeline.unet(noise(), TIMESTEPS, encoded[0], added_cond_kwargs=added).sample


def predict_with_lora(model: Path, lora: Path) -> StockPredictions:
    """Load ``model``, then ``lora`` (a directory or a file) by ``load_lora_weights``, then unload it."""
    pipeline = load_pipeline(model)
    weights = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    base = predict(pipeline)
    pipeline.load_lora_weights(str(lora))
    loaded = predict(pipeline)
    pipeline.unload_lora_weights()
    after = pipeline.unet.state_dict()
    restored = after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    return StockPredictions(base, loaded, predict(pipeline), restored)


def main(model: str, lora: str, output: str) -> None:
    """Write the predictions with ``lora`` to a safetensors file."""
    predictions = predict_with_lora(Path(model), Path(lora))
    ours = [name for name in sys.modules if name.split(".")[0] == "spare_core"]
    if ours:
        raise RuntimeError(f"this process imported {ours}")
    save_file({"base": predictions.base, "loaded": predictions.loaded.contiguous()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
