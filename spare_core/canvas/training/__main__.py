"""Train Canvas from nothing: ``python -m spare_core.canvas.training [--work DIR] [--output DIR]``, or ``make canvas``.

Stages run in order: pictures, vae, denoiser, judge, reference. Each resumes from its checkpoint in the work folder,
so a run that was stopped goes on with the same command. Needs the ``dev`` extra and npm.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from spare_core.canvas.classifier import Classifier
from spare_core.canvas.files import WEIGHTS
from spare_core.canvas.training.classifier import judge_accuracy, reconstruct, train_judge
from spare_core.canvas.training.dataset import Renderings, load_pictures
from spare_core.canvas.training.denoiser import save_pipeline, train_denoiser
from spare_core.canvas.training.tokenizer import write_tokenizer
from spare_core.canvas.training.vae import encode, train_vae

STEPS: Final = {"vae": 2600, "denoiser": 5000, "judge": 4500}


def main() -> None:
    """Run every stage and write the finished model to ``--output``."""
    parser = argparse.ArgumentParser(prog="python -m spare_core.canvas.training", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".canvas"), help="checkpoints, pictures and logs")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="where the finished model goes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    pictures = load_pictures(options.work, "train", options.seed)
    heldout = load_pictures(options.work, "heldout", options.seed)
    _say(f"pictures: {len(pictures.pixels)} to train on, {len(heldout.pixels)} held out", started)

    vae = train_vae(pictures, options.work, STEPS["vae"], options.seed).eval()
    write_tokenizer(options.work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(options.work / "tokenizer")
    latents = encode(vae, pictures, torch.arange(len(pictures.pixels))) * vae.config.scaling_factor
    unet, text_encoder = train_denoiser(latents, pictures, tokenizer, options.work, STEPS["denoiser"], options.seed)

    judge = train_judge(pictures, vae, options.work, STEPS["judge"], options.seed)
    scores = {
        "renderings": judge_accuracy(judge, heldout),
        "reconstructions": judge_accuracy(judge, reconstruct(vae, heldout)),
    }
    for name, (objects, styles) in scores.items():
        _say(f"judge on held-out {name}: objects {objects:.4f}, styles {styles:.4f}", started)

    save_pipeline(options.output / "pipeline", vae, unet, text_encoder, tokenizer)
    write_tokenizer(options.output / "pipeline" / "tokenizer")
    _save_judge(options.output / "judge", judge, heldout, scores)
    _say(f"wrote {options.output}", started)


@torch.no_grad()
def _save_judge(folder: Path, judge: Classifier, heldout: Renderings, scores: dict[str, tuple[float, float]]) -> None:
    """The judge, its own accuracy, and its features of the held-out renderings: what FID is measured against."""
    folder.mkdir(parents=True, exist_ok=True)
    judge.half().float()  # the shipped precision is what the shipped statistics are measured with
    index = torch.arange(0, len(heldout.pixels), 2)  # half of them: what is shipped stays within 16 MB
    features = torch.cat([judge(heldout.floats(part)).features for part in index.split(256)])
    reference = {
        "features": features.half(),
        "objects": heldout.objects[index].int(),
        "styles": heldout.styles[index].int(),
    }
    weights = {key: value.half().contiguous() for key, value in judge.state_dict().items()}
    accuracy = {name: {"objects": o, "styles": s} for name, (o, s) in scores.items()}
    save_file(weights, folder / "judge.safetensors", metadata={"accuracy": json.dumps(accuracy)})
    save_file(reference, folder / "reference.safetensors")


def _say(message: str, started: float) -> None:
    print(f"[{time.monotonic() - started:6.0f} s] {message}", flush=True)


if __name__ == "__main__":
    main()
