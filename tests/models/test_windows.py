"""Prompts longer than the text encoder reads are read in windows, none of which cuts a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.errors import ConceptError
from spare_core.models.unet import UNetDenoiser
from spare_core.models.windows import encode_windows, split_into_windows
from tests.support.adapters import load_tiny
from tests.tiny import PIXELS


@pytest.fixture(scope="module", params=["sd1_dir", "sdxl_dir"])
def each(request: pytest.FixtureRequest) -> UNetDenoiser:
    return load_tiny(request.getfixturevalue(request.param))


LONG = "a cat image in rust style, " * 9 + "and a dog"


def test_windows_hold_every_word_once_and_fit(each: UNetDenoiser) -> None:
    limit = each.pipeline.tokenizer.model_max_length
    windows = split_into_windows(each, LONG)
    assert " ".join(windows) == LONG and len(windows) > 2
    lengths = [len(ids) for ids in each.token_ids(windows)]
    assert max(lengths) <= limit
    # No window would have held the next one's first word, too.
    heads = [each.token_ids([window.split()[0]])[0] for window in windows[1:]]
    assert all(length + len(head) - 2 > limit for length, head in zip(lengths, heads, strict=False))
    assert split_into_windows(each, "a  short  prompt") == ["a  short  prompt"], "as it was written"


def test_each_window_is_encoded_for_itself(each: UNetDenoiser) -> None:
    windows = split_into_windows(each, LONG)
    found = encode_windows(each, [windows, ["a dog"]])
    own = each.encode_prompts([*windows, "a dog", ""])
    width = own.prompt_embeds.shape[1]
    assert found.prompt_embeds.shape[1] == len(windows) * width
    parts = found.prompt_embeds.unflatten(1, (len(windows), width))
    assert torch.allclose(parts[0], own.prompt_embeds[: len(windows)], atol=1e-6)
    assert torch.allclose(parts[1, 0], own.prompt_embeds[-2], atol=1e-6)
    assert torch.allclose(parts[1, 1:], own.prompt_embeds[[-1]], atol=1e-6)
    for name, value in found.added.items():
        assert torch.allclose(value[0], own.added[name][0], atol=1e-6)


def test_a_word_that_no_window_holds_is_refused(each: UNetDenoiser) -> None:
    with pytest.raises(ConceptError, match=r"is 9. tokens long; the model reads at most 32 at once"):
        split_into_windows(each, f"a cat {'#@' * 48}")


@pytest.mark.parametrize("which", ["sd1_dir", "sdxl_dir"])
def test_a_long_prompt_is_drawn(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, out = request.getfixturevalue(which), tmp_path / "out"
    asked = ["generate", str(model), "--prompt", LONG, "--prompt", LONG + " in snow", "--prompt", "a cat"]
    done = CliRunner().invoke(app, [*asked, "--steps", "2", "--output", str(out), "--json"])
    assert done.exit_code == 0, done.output
    pictures = json.loads(done.stdout)["pictures"]
    assert [one["windows"] > 1 for one in pictures] == [True, True, False]
    first, second, _ = (Image.open(one["file"]) for one in pictures)
    assert first.size == (PIXELS, PIXELS)
    assert first.tobytes() != second.tobytes(), "what the last window says is seen"
