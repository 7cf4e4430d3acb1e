"""What an erasure cannot beat: a model that never saw the concept, under the same attacks.

    python -m benchmarks.never_learnt --output out/never
    python -m benchmarks.never_learnt --output out/never --jobs 2 --attack

Canvas's UNet is trained again from nothing, by Canvas's own recipe but fewer steps, on its pictures without those of
some concepts; autoencoder and text encoder stay Canvas's, as they do in an erasure. Whatever an attack draws of such a
model it has brought along: that share is no fault of an erasure, and so many steps of fine-tuning are what learning
costs. The table has it beside erasures of the same concepts; what else the model draws is judged too. A judge that must
name something calls what is none of its names by one of them, so only pictures count of which it is sure (.8), and
*before* is what there is of them without any attack. Training resumes
(half an hour on one core; needs npm), ``--attack`` needs it finished. Each attack is one line of a file of its concept;
a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.ablation import CONCEPTS, Bench
from benchmarks.jobs import in_processes, read_rows
from spare_core.attacks.besieged import Besieged
from spare_core.attacks.budgets import BUDGETS, Learning, Relearning
from spare_core.attacks.record import Record
from spare_core.attacks.scene import Scene
from spare_core.canvas.protocol import CANVAS
from spare_core.canvas.training.dataset import Renderings, load_pictures
from spare_core.canvas.training.denoiser import train_denoiser
from spare_core.canvas.training.recipe import RECIPES
from spare_core.canvas.training.vae import encode, train_vae
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.evaluation.attacked import ADAPTED
from spare_core.evaluation.suite import domain_of
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.settings import EraseSettings, preset
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.progress import no_progress

NEVER = "never learnt"
ATTACKS = ("relearning", "pictures", "inversion", "conditioning")
BUDGET = dataclasses.replace(
    BUDGETS["quick"],
    inversion=Learning(300, (0.2,)),
    conditioning=Learning(300, (0.075,)),
    concept=Learning(300, (0.2,)),
    relearning=Relearning(128, ("lora", "full"), (32,)),
    restarts=1,
    vectors=(1,),
)
_SURE = 0.8


class Job(NamedTuple):
    """One concept in all models."""

    concept: str
    weights: Path
    variants: tuple[str, ...]
    output: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", nargs="+", default=["Neon Lines", "Cat"], help="concepts that are never shown")
    parser.add_argument("--steps", type=int, default=3000, help="of training the UNet")
    parser.add_argument("--attack", action="store_true", help="attack the trained UNet, and erasures beside it")
    parser.add_argument("--variants", nargs="*", default=["solve", "robust"], help="methods of the erasures")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    weights = options.output / "unet.safetensors"
    if not options.attack:
        train_without(options.without, options.steps, options.output, weights)
        return
    jobs = [Job(one, weights, tuple(options.variants), options.output) for one in options.without]
    for done in in_processes(run_job, jobs, options.jobs):
        print(done, flush=True)
    print(table(read_rows(options.output)))


def train_without(names: list[str], steps: int, work: Path, weights: Path) -> None:
    """Write the ``weights`` of a UNet that was shown no picture of ``names``, objects or styles of Canvas."""
    recipe = dataclasses.replace(
        RECIPES["canvas"], autoencoder=CANVAS.pipeline / "vae", steps={**RECIPES["canvas"].steps, "denoiser": steps}
    )
    work.mkdir(parents=True, exist_ok=True)
    shown = without(load_pictures(work, recipe, "train", 0), names)
    vae = train_vae(shown, work, recipe, 0).eval()
    latents = encode(vae, shown, torch.arange(len(shown.pixels))) * vae.config.scaling_factor
    tokenizer = CLIPTokenizer.from_pretrained(CANVAS.pipeline / "tokenizer")
    known = CLIPTextModel.from_pretrained(CANVAS.pipeline / "text_encoder", torch_dtype=torch.float32)
    known.requires_grad_(False)
    unet, _ = train_denoiser(latents, shown, tokenizer, work, recipe, 0, known)
    temporary = weights.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in unet.state_dict().items()}, temporary)
    temporary.rename(weights)


def without(pictures: Renderings, names: list[str]) -> Renderings:
    """The pictures that show none of ``names``."""
    keep = torch.ones(len(pictures.pixels), dtype=torch.bool)
    for name in names:
        of, known = (pictures.objects, CANVAS.objects) if name in CANVAS.objects else (pictures.styles, CANVAS.styles)
        keep &= of != known.index(name)
    return Renderings(*(part[keep] for part in pictures))


class Untaught(Besieged):
    """Attacks on a denoiser that has other weights than the base while it is attacked."""

    def __init__(self, weights: Mapping[str, Tensor], *args: Any) -> None:
        super().__init__(*args)
        self.weights = weights

    @contextlib.contextmanager
    def on(self, target: str) -> Iterator[None]:
        with swapped(self.denoiser, self.weights):
            yield


@contextlib.contextmanager
def swapped(denoiser: UNetDenoiser, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights in the UNet while inside."""
    before = {name: value.clone() for name, value in denoiser.weights.state_dict().items()}
    try:
        denoiser.weights.load_state_dict(weights)
        yield
    finally:
        denoiser.weights.load_state_dict(before)


def run_job(job: Job) -> str:
    """Attack each model, as far as it is not done."""
    kind, _, surrogate = next(row for row in CONCEPTS if row[1] == job.concept)
    bench = Bench(1, 8)
    erasure = build_erasure("canvas", job.concept, surrogate, kind)  # type: ignore[arg-type]
    scene = Scene(bench.denoiser, bench.suite, bench.judge, domain_of(erasure), erasure.concept, _SURE)
    path = job.output / f"{job.concept.replace(' ', '_')}.jsonl"
    for model in (NEVER, *job.variants):
        done = [(row["model"], row["attack"]) for row in read_rows(job.output) if row["concept"] == job.concept]
        left = [attack for attack in ATTACKS if (model, attack) not in done]
        if not left:
            continue
        record = Record(job.output / "found" / f"{path.stem}-{model.replace(' ', '_')}", {})
        make: Callable[..., Besieged] = partial(Untaught, load_file(job.weights))
        adapters = []
        if model != NEVER:
            settings = EraseSettings.from_mapping(preset(model))
            make = Besieged
            adapters = [overwrite(prepare(bench.denoiser, Erasures(erasure), settings), settings).state.adapter]
        besieged = make(bench.denoiser, erasure, scene, adapters, [erasure.concept], BUDGET, 1, record, no_progress)
        with besieged.on(ADAPTED):
            rest, before = others(bench, scene), scene.shown(scene.prompts(BUDGET.pictures))["shown"]
        for attack in left:
            row = {
                "model": model, "concept": job.concept, "attack": attack, "others": rest, "before": before,
                "budget": json.loads(json.dumps(BUDGET.as_dict())), "result": besieged.attack(attack, ADAPTED),
            }  # fmt: skip
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(model, job.concept, attack, row["result"]["shown"], flush=True)
    return f"{job.concept}: done"


def others(bench: Bench, scene: Scene) -> float:
    """The share of pictures of the others of the concept's domain that show what they were asked for."""
    names = [name for name in scene.suite.names(scene.domain) if name != scene.concept]
    seen = []
    for name in names:
        one = Scene(bench.denoiser, bench.suite, bench.judge, scene.domain, name, _SURE)
        seen.append(one.shown(one.prompts(4))["shown"])
    return sum(seen) / len(seen)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each attack's try."""
    lines = ["| concept | attack | model | before | shown | half after | others |", "|---|---|---|---|---|---|---|"]
    order = {attack: place for place, attack in enumerate(ATTACKS)}
    for row in sorted(rows, key=lambda row: (row["concept"], order[row["attack"]])):
        for name, one in row["result"]["tries"].items():
            cells = [row["concept"], f"{row['attack']}, {name}", row["model"], f"{row['before']:.2f}"]
            cells += [f"{one['shown']:.2f}", str(one["half"] or "–"), f"{row['others']:.3f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
