"""Does an erased concept come back under one learned token? Textual inversion against an erasure, by kind of mask.

    python -m benchmarks.inversion --variants default "mask none" --concepts "Neon Lines" Cat

The attacker knows the frozen model and holds its trajectories: one token's vector is trained until the erased model
predicts under it what the frozen model predicts under the concept. Prints the share of pictures in which the judge sees
the concept, under its own name and under the learned token.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ablation import CONCEPTS, VARIANTS
from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.evaluation.judgement import Judge
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.suite import Suite, load_suite
from spare_core.method.algorithm import Prepared, overwrite, prepare
from spare_core.method.settings import EraseSettings
from spare_core.models.conditioning import Conditioning
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.generate import draw
from spare_core.runs.stages import make_repeatable

TOKEN = "<learned>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["default"], help=f"some of: {', '.join(VARIANTS)}")
    parser.add_argument("--concepts", nargs="+", default=["Neon Lines", "Cat"])
    parser.add_argument("--steps", type=int, default=100, help="of the attack")
    parser.add_argument("--lr", type=float, default=0.02, help="of the attack, in lengths of a token's vector")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    options = parser.parse_args()
    make_repeatable()
    denoiser = load_denoiser("canvas", "cpu", "float32")
    suite = load_suite("canvas")
    judge = load_judge(suite)
    print("| erased | variant | residual | drift | by name | under a learned token |\n|---|---|---|---|---|---|")
    for kind, concept, surrogate in CONCEPTS:
        if concept not in options.concepts:
            continue
        erasure = build_erasure("canvas", concept, surrogate, kind)  # type: ignore[arg-type]
        prepared = prepare(denoiser, Erasures(erasure), EraseSettings())
        for variant in options.variants:
            state, measured, _ = overwrite(prepared, EraseSettings.from_mapping(dict(VARIANTS[variant])))
            named = seen(denoiser, suite, judge, state.adapter, kind, concept, concept, options.seeds)
            with learning(denoiser, concept) as vector:
                attack(prepared, concept, state.adapter, vector, options.steps, options.lr)
                found = seen(denoiser, suite, judge, state.adapter, kind, concept, TOKEN, options.seeds)
            figures = f"{measured.residual:.3f} | {measured.mean_drift:.4f} | {named:.2f} | {found:.2f}"
            print(f"| {concept} | {variant} | {figures} |", flush=True)


@contextlib.contextmanager
def learning(denoiser: UNetDenoiser, concept: str) -> Iterator[torch.nn.Parameter]:
    """A token :data:`TOKEN` whose vector is the parameter; it starts as the mean of the concept's."""
    tokenizer, encoder = denoiser.pipeline.tokenizer, denoiser.pipeline.text_encoder
    table = encoder.get_input_embeddings()
    own = tokenizer(concept, add_special_tokens=False).input_ids
    vector = torch.nn.Parameter(table.weight[own].mean(dim=0).detach().clone())
    tokenizer.add_tokens(TOKEN)
    learned = tokenizer.convert_tokens_to_ids(TOKEN)
    known = table.forward

    def look_up(ids: Tensor) -> Tensor:
        is_learned = ids == learned
        return torch.where(is_learned[..., None], vector, known(ids.masked_fill(is_learned, 0)))

    table.forward = look_up
    try:
        yield vector
    finally:
        table.forward = known


def attack(
    prepared: Prepared, concept: str, adapter: Adapter, vector: torch.nn.Parameter, steps: int, lr: float
) -> None:
    """Train the vector."""
    denoiser, bank = prepared.denoiser, prepared.bank
    assert isinstance(denoiser, UNetDenoiser)
    texts = [prompt.replace(concept, TOKEN) for prompt in bank.prompts]
    optimizer = torch.optim.Adam([vector], lr=lr * float(vector.detach().norm()) / len(vector) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    with adapter.attached(denoiser):
        for _ in range(steps):
            side = bank.forget.take(torch.randint(len(bank.forget.timesteps), (8,), generator=generator))
            embeds, _ = denoiser.pipeline.encode_prompt(
                [texts[row] for row in side.student.tolist()], denoiser.device, 1, False
            )
            found = denoiser.predict(side.noisy, side.timesteps, Conditioning(embeds))
            F.mse_loss(found, side.under_student).backward()
            optimizer.step()
            optimizer.zero_grad()


def seen(
    denoiser: UNetDenoiser, suite: Suite, judge: Judge, adapter: Adapter, kind: str, concept: str, word: str, seeds: int
) -> float:
    """Share of the pictures drawn under ``word`` in which the judge names ``concept``."""
    others = suite.objects if kind == "style" else suite.styles
    row = suite.find(concept, kind)  # type: ignore[arg-type]
    prompts = [suite.prompt(other, word) if kind == "style" else suite.prompt(word, other) for other in others]
    numbers = [500 + seed for seed in range(seeds) for _ in prompts]
    with adapter.attached(denoiser):
        pixels = draw(denoiser, [], prompts * seeds, numbers, suite.steps, suite.guidance)
    judged = judge.judge(pixels)
    verdict = judged.styles if kind == "style" else judged.objects
    return float((verdict.predicted == row).float().mean())


if __name__ == "__main__":
    main()
