"""Train a built-in model from nothing: ``python -m spare_core.canvas.training canvas``, or ``make canvas``.

Stages run in order: pictures, vae, denoiser, judge, reference. Each resumes from its checkpoint in the work folder,
so a run that was stopped goes on with the same command. Needs the ``dev`` extra and npm.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from spare_core.canvas.classifier import Classifier
from spare_core.canvas.training.classifier import judge_accuracy, reconstruct, train_judge
from spare_core.canvas.training.dataset import Renderings, load_pictures
from spare_core.canvas.training.denoiser import save_pipeline, train_denoiser
from spare_core.canvas.training.recipe import RECIPES, Recipe
from spare_core.canvas.training.tokenizer import write_grid_tokenizer
from spare_core.canvas.training.vae import encode, train_vae


def main() -> None:
    """Train the model that is named."""
    parser = argparse.ArgumentParser(prog="python -m spare_core.canvas.training", description=__doc__)
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--work", type=Path, help="checkpoints, pictures and logs; default .canvas/MODEL")
    parser.add_argument("--output", type=Path, help="where the finished model goes; default: into the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    recipe = RECIPES[options.model]
    work = options.work or Path(".canvas", options.model)
    train_model(recipe, work, options.output or recipe.grid.weights, options.seed, torch.device(options.device))


def train_model(recipe: Recipe, work: Path, output: Path, seed: int, device: torch.device) -> None:
    """All stages; ``work`` keeps what an interrupted run has done."""
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pictures, heldout = (load_pictures(work, recipe, split, seed).to(device) for split in ("train", "heldout"))
    _say(f"pictures: {len(pictures.pixels)} to train on, {len(heldout.pixels)} held out", started)

    vae = train_vae(pictures, work, recipe, seed).eval()
    write_grid_tokenizer(work / "tokenizer", recipe.grid)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    latents = encode(vae, pictures, torch.arange(len(pictures.pixels), device=device)) * vae.config.scaling_factor
    unet, text_encoder = train_denoiser(latents, pictures, tokenizer, work, recipe, seed)
    judge = train_judge(pictures, vae, work, recipe, seed)

    save_judge(output / "judge", judge, vae, heldout)
    save_pipeline(output / "pipeline", vae, unet, text_encoder, tokenizer)
    write_grid_tokenizer(output / "pipeline" / "tokenizer", recipe.grid)
    _say(f"wrote {output}", started)


@torch.no_grad()
def save_judge(folder: Path, judge: Classifier, vae: AutoencoderKL, heldout: Renderings) -> None:
    """The judge, its own accuracy, and its features of held-out renderings: what FID is measured against."""
    folder.mkdir(parents=True, exist_ok=True)
    judge.half().float()  # the shipped precision is what the shipped statistics are measured with
    accuracy = {}
    for name, shown in (("renderings", heldout), ("reconstructions", reconstruct(vae, heldout))):
        objects, styles = judge_accuracy(judge, shown)
        accuracy[name] = {"objects": objects, "styles": styles}
        print(f"judge on held-out {name}: objects {objects:.4f}, styles {styles:.4f}", flush=True)
    # Half of them: what is shipped stays small.
    index = torch.arange(0, len(heldout.pixels), 2, device=heldout.pixels.device)
    features = torch.cat([judge(heldout.floats(part)).features for part in index.split(256)])
    reference = {
        "features": features.half(),
        "objects": heldout.objects[index].int(),
        "styles": heldout.styles[index].int(),
    }
    weights = {key: value.half().contiguous() for key, value in judge.state_dict().items()}
    save_file(weights, folder / "judge.safetensors", metadata={"accuracy": json.dumps(accuracy)})
    save_file(reference, folder / "reference.safetensors")


def _say(message: str, started: float) -> None:
    print(f"[{time.monotonic() - started:6.0f} s] {message}", flush=True)


if __name__ == "__main__":
    main()
