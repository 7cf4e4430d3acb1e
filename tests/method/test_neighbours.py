"""What lies next to a concept is found by the model's own predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spare_core.concepts.concept import Erasure
from spare_core.errors import ConceptError
from spare_core.method.neighbours import rank_neighbours
from spare_core.method.settings import EraseSettings
from tests.support.adapters import load_tiny

SETTINGS = EraseSettings(example_steps=3, dtype="float32", device="cpu")
ERASURE = Erasure("Neon", "x", "style", (), "{context} in {concept}", ("cat", "dog", "hat", "cup", "fox"), ("glow",))


def test_distances_are_the_predictions_own(sd1_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model answers with a number that is known for each prompt."""
    denoiser = load_tiny(sd1_dir)
    answers = {"": 0.0, "Neon": 2.0, "Rust": 1.0, "Ink": 2.5, "Photo": 6.0}
    texts: list[str] = []
    encode = denoiser.encode_prompts

    def encoding(prompts: list[str], resolution: int = 0) -> object:
        texts.extend(prompts)
        return encode(prompts, resolution)

    def predicting(noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: object) -> torch.Tensor:
        table = encode(texts).prompt_embeds
        rows = [int((table - one).abs().flatten(1).sum(dim=1).argmin()) for one in conditioning.prompt_embeds]
        values = [answers[texts[row].rpartition(" in ")[2]] for row in rows]
        return torch.tensor(values)[:, None, None, None].expand_as(noisy)

    monkeypatch.setattr(denoiser, "encode_prompts", encoding)
    monkeypatch.setattr(denoiser, "predict", predicting)
    found = rank_neighbours(denoiser, ERASURE, ["Photo", "NEON", "Rust", "Glow", "Ink"], SETTINGS)
    assert [one.name for one in found] == ["Ink", "Rust", "Photo"]
    assert [one.distance for one in found] == pytest.approx([0.25 / 4, 1 / 4, 16 / 4])


def test_the_same_question_has_the_same_answer(sd1_dir: Path) -> None:
    denoiser = load_tiny(sd1_dir)
    first, again = (rank_neighbours(denoiser, ERASURE, names, SETTINGS) for names in (["Rust", "Ink"], ["Rust", "Ink"]))
    assert first == again
    assert all(one.distance > 0 for one in first)


@pytest.mark.parametrize(
    ("candidates", "said"), [(["neon", "GLOW"], "no candidate to replace 'Neon'"), (["very " * 60], "tokens long")]
)
def test_what_cannot_be_compared_is_refused(sd1_dir: Path, candidates: list[str], said: str) -> None:
    with pytest.raises(ConceptError, match=said):
        rank_neighbours(load_tiny(sd1_dir), ERASURE, candidates, SETTINGS)
