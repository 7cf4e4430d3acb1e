"""Canvas is what its README says: small, judged well, drawn by a stock pipeline, and erasable in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from spare_core.canvas.grid import RESOLUTION, TEMPLATE, Grid
from spare_core.canvas.judge import GridJudge
from spare_core.canvas.protocol import CANVAS, OBJECTS, STYLES, prompt
from spare_core.canvas.protocol160 import CANVAS160
from spare_core.canvas.renderer import STYLE_FUNCTIONS, render
from spare_core.canvas.training.__main__ import train_model
from spare_core.canvas.training.loop import mixed
from spare_core.canvas.training.recipe import RECIPES
from spare_core.canvas.training.tokenizer import learn_merges, write_grid_tokenizer
from spare_core.concepts.lists import build_erasure
from spare_core.errors import ConceptError
from spare_core.evaluation.grid import draw_grid
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.metrics import mean_accuracy
from spare_core.evaluation.suite import Suite, load_suite
from spare_core.models.loading import load_denoiser

GRIDS = pytest.mark.parametrize("grid", [CANVAS, CANVAS160], ids=lambda grid: grid.name)


def test_the_weights_are_small() -> None:
    """What is cloned, installed and copied into images."""
    for grid, megabytes in ((CANVAS, 16), (CANVAS160, 32)):
        assert sum(file.stat().st_size for file in grid.weights.rglob("*") if file.is_file()) <= megabytes * 1e6


@GRIDS
def test_every_weight_file_is_half_precision_safetensors(grid: Grid) -> None:
    files = [file for file in grid.weights.rglob("*.safetensors") if file.name != "reference.safetensors"]
    assert len(files) == 4
    for file in files:
        with safe_open(file, "pt") as opened:
            assert {opened.get_tensor(name).dtype for name in opened.keys()} == {torch.float16}, file  # noqa: SIM118
    assert not [file for file in grid.weights.rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


@GRIDS
def test_every_word_of_the_grid_is_one_token(grid: Grid) -> None:
    """So that no concept is longer, or harder to learn, than another."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(grid.pipeline / "tokenizer")
    words = {word for name in (*grid.objects, *grid.styles) for word in name.split()} | set(
        TEMPLATE.format(object="", style="").replace(".", " ").split()
    )
    assert {word: len(tokenizer.tokenize(word)) for word in words if len(tokenizer.tokenize(word)) != 1} == {}
    assert len(tokenizer.tokenize("naïve 🪼")) > 2


@GRIDS
def test_the_tokenizer_that_is_shipped_is_the_one_the_code_writes(grid: Grid, tmp_path: Path) -> None:
    write_grid_tokenizer(tmp_path, grid)
    for file in tmp_path.iterdir():
        assert (grid.pipeline / "tokenizer" / file.name).read_bytes() == file.read_bytes()


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


@GRIDS
def test_the_judge_names_99_percent_of_held_out_renderings(grid: Grid) -> None:
    """Measured when it was trained, and kept in its file; the next test sees it at work."""
    with safe_open(grid.weights / "judge" / "judge.safetensors", "pt") as opened:
        accuracy = json.loads(opened.metadata()["accuracy"])["renderings"]
    assert accuracy["objects"] >= 0.99
    assert accuracy["styles"] >= 0.99


@pytest.mark.parametrize(("grid", "per_style"), [(CANVAS, 3), (CANVAS160, 2)], ids=["canvas", "canvas160"])
def test_the_judge_recognises_what_the_model_draws(grid: Grid, per_style: int) -> None:
    """A few objects of each style: a sample of the grid that benchmarks/canvas_quality.py draws whole."""
    denoiser = load_denoiser(grid.name, "cpu")
    suite = load_suite(grid.name).restricted(seeds=1, objects_per_style=per_style)
    drawn = draw_grid(denoiser, suite, load_judge(suite))
    everything = torch.ones(len(drawn), dtype=torch.bool)
    assert mean_accuracy([(drawn.outcomes.styles, everything)]).value >= 0.95
    assert mean_accuracy([(drawn.outcomes.objects, everything)]).value >= 0.85


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


def test_canvas160_keeps_few_by_name() -> None:
    """As the users of a real model do; what an erasure does to the others is what it is there to show."""
    erasure = build_erasure("canvas160", "giraffe", "Camel")
    assert erasure.keep == CANVAS160.keep["object"]
    assert erasure.contexts == STYLES
    erasure = build_erasure("canvas160", "Winter", "photo")
    assert erasure.keep == ("Watercolor", "Pencil Drawing")
    assert erasure.contexts == tuple(OBJECTS)
    assert build_erasure("canvas160", "Owl", "Duck", keep=["swan"]).keep == ("Swan",)
    with pytest.raises(ConceptError, match="Canvas160 has no object 'Grafe'; nearest: 'Giraffe'; it has 160"):
        build_erasure("canvas160", "Grafe", "Camel", "object")


def test_canvas160_has_a_restricted_grid_by_default() -> None:
    suite = load_suite("canvas160")
    assert (len(suite.objects), len(suite.styles)) == (160, 12)
    assert suite.subset() == {"seeds": 1, "of_seeds": 5, "objects_per_style": 40, "of_objects": 160}
    cells = suite.cells()
    assert len(cells.objects) == 480
    assert cells.objects.bincount().tolist() == [3] * 160
    assert suite.restricted(seeds=5, objects_per_style=160).subset() is None


@GRIDS
def test_training_goes_through_all_stages_and_resumes(grid: Grid, tmp_path: Path) -> None:
    """A few steps on noise in place of the renderings, whose artwork is fetched with npm."""
    few = {"train": 3, "heldout": 2}
    steps = {"vae": 2, "denoiser": 2, "judge": 2}
    recipe = replace(RECIPES[grid.name], grid=small(grid), per_cell=few, batch=4, steps=steps)
    for split, count in few.items():
        shape = (len(recipe.grid.objects) * len(grid.styles) * count, RESOLUTION, RESOLUTION, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.save(tmp_path / f"{split}-0.npy", pixels)
    train_model(recipe, tmp_path, tmp_path / "out", 0, torch.device("cpu"))
    denoiser = load_denoiser(str(tmp_path / "out" / "pipeline"), "cpu")
    widths = denoiser.weights.config.block_out_channels, denoiser.weights.config.cross_attention_dim
    assert widths == ([*grid.channels], grid.text_width)
    suite = Suite(**recipe.grid.suite() | {"judge": None})
    judge = GridJudge(recipe.grid, suite, torch.device("cpu"), tmp_path / "out" / "judge")
    assert judge.accuracy is not None and set(judge.accuracy) == {"renderings", "reconstructions"}
    assert judge.reference is not None and len(judge.reference.features) == 2 * len(grid.styles)
    before = load_file(tmp_path / "out" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    train_model(recipe, tmp_path, tmp_path / "again", 0, torch.device("cpu"))  # all is done: nothing is trained again
    after = load_file(tmp_path / "again" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("native", [True, False])
def test_training_computes_in_bfloat16_only_where_the_device_does(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU that has to emulate it takes ten times as long."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    with mixed(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (torch.bfloat16 if native else torch.float32)


def small(grid: Grid) -> Grid:
    """Its first two objects."""
    return replace(grid, artwork=dict(list(grid.artwork.items())[:2]), seeds=0, per_style=0)
