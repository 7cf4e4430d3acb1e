"""A grid has one judged picture of each cell and seed, the base's is drawn once, and damage is seen in the pictures."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spare_core.canvas.judge import GridJudge
from spare_core.errors import TrainingError
from spare_core.evaluation import grid as grid_module
from spare_core.evaluation.damage import compare, measure_texture, near_duplicates
from spare_core.evaluation.grid import GridResult, base_grid, batch_size_for, draw_grid
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import load_tiny, random_adapter
from tests.support.grids import canvas_judge, grid_of, small_suite
from tests.tiny import PIXELS

SUITE = small_suite()


def same(a: GridResult, b: GridResult, tolerance: float = 0.0) -> bool:
    """Whether two grids hold the same numbers."""
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return all(torch.allclose(x.double(), y.double(), rtol=0, atol=tolerance) for x, y in pairs)


@pytest.mark.parametrize("folder", ["sd1_dir", "sd2_dir", "sdxl_dir"])
def test_every_architecture_draws_and_judges_its_grid(
    folder: str, judge: GridJudge, request: pytest.FixtureRequest
) -> None:
    seen: list[tuple[int, int]] = []
    suite = small_suite(seeds=(188,))
    grid = draw_grid(load_tiny(request.getfixturevalue(folder)), suite, judge, batch_size=4,
                     on_batch=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert seen == [(0, 9), (4, 9), (8, 9), (9, 9)]
    assert len(grid) == 9
    assert grid.thumbnails.shape == (9, PIXELS, PIXELS, 3)
    assert grid.thumbnails.dtype == torch.uint8
    assert all(len(getattr(grid, f.name)) == 9 for f in dataclasses.fields(grid))
    assert ((grid.style_probability > 0) & (grid.style_probability < 1)).all()


def test_a_picture_depends_on_its_prompt_and_seed_alone(denoiser: UNetDenoiser, judge: GridJudge) -> None:
    """Not on the batch that it was drawn in."""
    whole = draw_grid(denoiser, SUITE, judge, batch_size=18)
    pieces = draw_grid(denoiser, SUITE, judge, batch_size=5)
    assert (whole.thumbnails.int() - pieces.thumbnails.int()).abs().max() <= 1
    assert torch.allclose(whole.features, pieces.features, atol=1e-3)
    by_hand = denoiser.decode_latents(denoiser.generate([SUITE.prompt("Dog", "Rust")], [288], 2, 3.0))
    row = ((whole.objects == 1) & (whole.styles == 2) & (whole.seeds == 288)).nonzero().item()
    pixels = (by_hand[0].permute(1, 2, 0) * 255).round().int()
    assert (whole.thumbnails[row].int() - pixels).abs().max() <= 1


def test_adapters_change_the_pictures_and_are_off_again(denoiser: UNetDenoiser, judge: GridJudge) -> None:
    suite = small_suite(seeds=(188,))
    before = draw_grid(denoiser, suite, judge)
    adapted = draw_grid(denoiser, suite, judge, [random_adapter(denoiser, "channel")])
    assert not torch.equal(adapted.thumbnails, before.thumbnails)
    assert same(draw_grid(denoiser, suite, judge), before)


def test_the_bases_grid_is_drawn_once(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    first, cached = base_grid(denoiser, "digest", SUITE, judge, cache=tmp_path)
    again, cached_again = base_grid(denoiser, "digest", SUITE, judge, cache=tmp_path)
    assert (cached, cached_again) == (False, True)
    assert same(first, again)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_whatever_changes_the_grid_changes_its_key(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path, sd2_dir: Path
) -> None:
    """Base, suite, part of the suite, judge, decoder."""

    def key(digest: str = "a", suite: object = SUITE, by: GridJudge = judge, model: UNetDenoiser = denoiser,
            cells: object = None) -> str:  # fmt: skip
        return grid_module._cache_key(model, digest, suite, by, cells)  # type: ignore[arg-type]

    keys = [
        key(), key("b"), key(suite=small_suite(steps=3)), key(suite=small_suite(guidance=3.5)),
        key(suite=small_suite(template="{style} {object}")), key(suite=SUITE.restricted(seeds=1)),
        key(suite=SUITE.restricted(objects_per_style=2)), key(by=canvas_judge(tmp_path, SUITE, seed=9)),
        key(model=load_tiny(sd2_dir)), key(cells=SUITE.cells()),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


@pytest.mark.parametrize("fault", ["flipped", "cut", "renamed"])
def test_a_damaged_cache_is_drawn_again_with_a_warning(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path, fault: str
) -> None:
    """Also where only one byte of a picture differs, or where it is another grid's."""
    suite = small_suite(seeds=(188,))
    first, _ = base_grid(denoiser, "digest", suite, judge, cache=tmp_path)
    file = next(tmp_path.iterdir())
    content = bytearray(file.read_bytes())
    if fault == "flipped":
        content[-7] ^= 1
    if fault == "renamed":
        base_grid(denoiser, "another", suite, judge, cache=tmp_path)
        content = bytearray(next(other for other in tmp_path.iterdir() if other != file).read_bytes())
    file.write_bytes(content[: len(content) // 2] if fault == "cut" else content)
    with pytest.warns(UserWarning, match="made again"):
        again, cached = base_grid(denoiser, "digest", suite, judge, cache=tmp_path)
    assert not cached
    assert same(first, again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert base_grid(denoiser, "digest", suite, judge, cache=tmp_path)[1]


def test_a_cache_that_cannot_be_written_costs_only_time(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept"):
        grid, cached = base_grid(
            denoiser, "digest", small_suite(seeds=(188,)), judge, cache=tmp_path / "file" / "cache"
        )
    assert (len(grid), cached) == (9, False)


def test_a_user_without_a_home_has_no_cache_but_a_grid(
    denoiser: UNetDenoiser, judge: GridJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPARE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    grid, cached = base_grid(denoiser, "digest", small_suite(seeds=(188,)), judge)
    assert (len(grid), cached) == (9, False)


def test_pictures_that_are_not_finite_are_an_error(
    denoiser: UNetDenoiser, judge: GridJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoiser, "decode_latents", lambda latents: torch.full((len(latents), 3, 32, 32), torch.nan))
    with pytest.raises(TrainingError, match="float32"):
        draw_grid(denoiser, small_suite(seeds=(188,)), judge)


@given(st.sampled_from([32, 64, 512, 768, 1024, 4096]))
def test_a_batch_is_large_for_small_pictures_and_never_empty(side: int) -> None:
    assert 1 <= batch_size_for(side) <= 128
    assert batch_size_for(64) == 128
    assert batch_size_for(side) * side**2 <= max(2**21, side**2)


def test_large_pictures_are_kept_small() -> None:
    """Their texture is measured before."""
    assert grid_module._thumbnails(torch.rand(2, 3, 512, 512)).shape == (2, 128, 128, 3)
    assert grid_module._thumbnails(torch.rand(2, 3, 64, 64)).shape == (2, 64, 64, 3)


def waves(cycles: float, amplitude: float = 0.4) -> torch.Tensor:
    """Grey pictures ``(1, 3, 64, 64)`` of one horizontal frequency, in cycles a pixel."""
    wave = 0.5 + amplitude * torch.sin(2 * torch.pi * cycles * torch.arange(64) + 0.3)
    return wave.expand(1, 3, 64, 64)


def test_texture_tells_noise_from_pictures_from_nothing() -> None:
    """0.8 is the share of the frequency square outside the circle: 1 - pi/16."""
    noise = measure_texture(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert noise.high_frequency == pytest.approx(torch.full((4,), 1 - torch.pi / 16), abs=0.03)
    slow, fast, flat = (measure_texture(picture) for picture in (waves(4 / 64), waves(24 / 64), waves(0, 0)))
    assert (slow.high_frequency.item(), fast.high_frequency.item()) == pytest.approx((0, 1), abs=1e-3)
    assert slow.contrast.item() == pytest.approx(0.4 / 2**0.5, abs=1e-3)
    assert (flat.contrast.item(), flat.high_frequency.item()) == pytest.approx((0, 0), abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.05, 1.0), st.floats(0.0, 0.3))
def test_texture_ignores_brightness_and_contrast_scales_with_it(scale: float, offset: float) -> None:
    picture = 0.7 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain, changed = measure_texture(picture), measure_texture(scale * picture + offset)
    assert changed.high_frequency.item() == pytest.approx(plain.high_frequency.item(), rel=1e-3)
    assert changed.contrast.item() == pytest.approx(scale * plain.contrast.item(), rel=1e-3)


def test_near_duplicates_are_looked_for_within_a_seed() -> None:
    grid = grid_of(SUITE)
    assert not near_duplicates(grid.thumbnails, grid.seeds).any()
    copied = grid.thumbnails.clone()
    copied[1], copied[-1] = copied[0], copied[0]  # the same seed, and another
    assert near_duplicates(copied, grid.seeds).nonzero().flatten().tolist() == [0, 1]


def test_damage_counts_pictures_outside_the_bases_range() -> None:
    """A model that collapses is seen on kept and erased pictures apart."""
    base = grid_of(SUITE)
    erased = base.styles == 0
    high = torch.where(erased, 0.8, base.high_frequency)
    flat = torch.where(base.objects == 1, 0.0, base.contrast)
    adapted = dataclasses.replace(base, high_frequency=high, contrast=flat)
    damage = compare(base.pictures, adapted.pictures, erased)
    assert (damage["kept"]["pictures"], damage["erased"]["pictures"]) == (12, 6)
    kept, gone = damage["kept"]["adapted"], damage["erased"]["adapted"]
    assert gone["high_frequency_outside"] == 1.0
    assert gone["outside"] == gone["damaged"] == 1.0
    assert kept["contrast_outside"] >= 4 / 12
    assert damage["kept"]["base"]["outside"] <= 4 / 12  # of 18 pictures the extremes alone


def test_a_model_that_draws_one_picture_for_all_prompts_is_all_duplicates() -> None:
    base = grid_of(SUITE)
    adapted = dataclasses.replace(base, thumbnails=base.thumbnails[:1].expand_as(base.thumbnails))
    damage = compare(base.pictures, adapted.pictures, base.styles == 0)
    assert damage["kept"]["adapted"]["near_duplicates"] == damage["kept"]["adapted"]["damaged"] == 1.0
    assert damage["kept"]["base"]["near_duplicates"] == 0.0
