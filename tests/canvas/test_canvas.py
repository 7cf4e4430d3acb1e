"""Canvas is what its README says: small, judged well, drawn by a stock pipeline, and erasable in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from spare_core.canvas.files import PIPELINE, WEIGHTS
from spare_core.canvas.protocol import OBJECTS, STYLES, TEMPLATE, prompt
from spare_core.canvas.renderer import STYLE_FUNCTIONS, render
from spare_core.canvas.training.tokenizer import learn_merges, write_tokenizer
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.errors import ConceptError
from spare_core.evaluation.grid import draw_grid
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.metrics import mean_accuracy
from spare_core.evaluation.suite import load_suite
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.runs.erase import erase


def test_the_weights_are_at_most_16_megabytes() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 16e6


def test_every_weight_file_is_half_precision_safetensors() -> None:
    files = [file for file in WEIGHTS.rglob("*.safetensors") if file.name != "reference.safetensors"]
    assert len(files) == 4
    for file in files:
        with safe_open(file, "pt") as opened:
            assert {opened.get_tensor(name).dtype for name in opened.keys()} == {torch.float16}, file  # noqa: SIM118
    assert not [file for file in WEIGHTS.rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_every_word_of_the_grid_is_one_token() -> None:
    """So that no concept is longer, or harder to learn, than another."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")
    words = {word for name in (*OBJECTS, *STYLES) for word in name.split()} | set(
        TEMPLATE.format(object="", style="").replace(".", " ").split()
    )
    assert {word: len(tokenizer.tokenize(word)) for word in words if len(tokenizer.tokenize(word)) != 1} == {}
    assert len(tokenizer.tokenize("naïve 🪼")) > 2


def test_the_tokenizer_that_is_shipped_is_the_one_the_code_writes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for file in tmp_path.iterdir():
        assert (PIPELINE / "tokenizer" / file.name).read_bytes() == file.read_bytes()


def test_merges_make_one_token_of_each_word() -> None:
    merges = learn_merges(["ink", "in", "inn"])
    for word in ("ink", "in", "inn"):
        symbols = [*word[:-1], word[-1] + "</w>"]
        for first, second in merges:
            at = 0
            while at < len(symbols) - 1:
                if (symbols[at], symbols[at + 1]) == (first, second):
                    symbols[at : at + 2] = [first + second]
                at += 1
        assert symbols == [word + "</w>"]


@pytest.mark.parametrize("style", STYLES)
def test_every_style_draws_any_artwork_within_range_and_by_its_seed_alone(style: str) -> None:
    artwork = Image.new("RGBA", (64, 64))
    artwork.paste((220, 60, 40, 255), (16, 12, 50, 52))
    pictures = [render(artwork, style, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert pictures[0].shape == (64, 64, 3)
    assert pictures[0].min() >= 0.0 and pictures[0].max() <= 1.0
    assert pictures[0].std() > 0.05
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert set(STYLE_FUNCTIONS) == set(STYLES)


def test_the_judge_names_99_percent_of_held_out_renderings() -> None:
    """Measured when it was trained, and kept in its file; the next test sees it at work."""
    with safe_open(WEIGHTS / "judge" / "judge.safetensors", "pt") as opened:
        accuracy = json.loads(opened.metadata()["accuracy"])["renderings"]
    assert accuracy["objects"] >= 0.99
    assert accuracy["styles"] >= 0.99


def test_the_judge_recognises_what_canvas_draws() -> None:
    """One object of each style: a sample of the grid that benchmarks/canvas_quality.py draws whole."""
    denoiser = load_denoiser("canvas", "cpu")
    suite = load_suite("canvas").restricted(seeds=1, objects_per_style=3)
    grid = draw_grid(denoiser, suite, load_judge(suite))
    everything = torch.ones(len(grid), dtype=torch.bool)
    assert mean_accuracy([(grid.outcomes.styles, everything)]).value >= 0.95
    assert mean_accuracy([(grid.outcomes.objects, everything)]).value >= 0.85


def test_a_style_is_erased_with_the_defaults(tmp_path: Path) -> None:
    """A real erase: the residual falls below a tenth, and no kept concept drifts by more than a tenth of the gap."""
    erasure = build_erasure("canvas", "neon lines", "Pencil Drawing")
    manifest = erase("canvas", Erasures(erasure), EraseSettings(), tmp_path / "adapter")
    assert manifest["concept"] == "Neon Lines"
    assert manifest["residual"] < 0.1
    assert manifest["mean_drift"] < 0.1
    assert set(manifest["drift"]) > {"Pencil Drawing", "(empty prompt)"}


def test_canvas_knows_its_grid_and_nothing_else() -> None:
    erasure = build_erasure("canvas", "cat", "Dog")
    assert (erasure.kind, erasure.concept, len(erasure.keep)) == ("object", "Cat", len(OBJECTS) - 2)
    assert next(erasure.prompts("Cat")) == prompt("Cat", STYLES[0])
    with pytest.raises(ConceptError, match="Canvas has no style 'Neon Line'; nearest: 'Neon Lines'"):
        build_erasure("canvas", "Neon Line", "Photo", "style")
    with pytest.raises(ConceptError, match="no style 'neon lights'; nearest: 'Neon Lines'"):
        build_erasure("canvas", "neon lights", "Photo")
    with pytest.raises(ConceptError, match="is the concept itself"):
        build_erasure("canvas", "Cat", " CAT ")
