"""What lies next to a concept is found by the model's own predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import ConceptError
from spare_core.method.neighbours import nearest_unnamed, rank_neighbours
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


def test_the_nearest_words_are_those_that_no_request_names(sd1_dir: Path) -> None:
    """Looked for in the tokenizer's table, then ranked by the predictions."""
    denoiser = load_tiny(sd1_dir)
    erasures = Erasures(Erasure("Cat", "Dog", "object", ("the horses",), "{concept} {context}", ("x",), ("frogs",)))
    found = nearest_unnamed(denoiser, erasures, SETTINGS, 3)
    assert len(found) == 3
    named = {"cat", "dog", "horse", "frog"}
    words = [word for word in denoiser.words() if word not in named]
    assert set(found) < set(words)
    assert set(found.values()) == set(erasures.parts)
    table = denoiser.word_vectors([*words, "cat"])
    order = torch.nn.functional.cosine_similarity(table[:-1], table[-1:]).argsort(descending=True)[:12]
    ranked = rank_neighbours(denoiser, erasures.parts[0], [words[i] for i in order], SETTINGS, contexts=1)
    assert list(found) == [one.name for one in ranked[:3]]


def test_a_words_vector_is_the_mean_of_its_tokens(sd1_dir: Path) -> None:
    denoiser = load_tiny(sd1_dir)
    one, other, both = denoiser.word_vectors(["cat", "dog", "cat dog"])
    torch.testing.assert_close(both, (one + other) / 2)


@pytest.mark.parametrize(
    ("candidates", "said"), [(["neon", "GLOW"], "no candidate to replace 'Neon'"), (["very " * 60], "tokens long")]
)
def test_what_cannot_be_compared_is_refused(sd1_dir: Path, candidates: list[str], said: str) -> None:
    with pytest.raises(ConceptError, match=said):
        rank_neighbours(load_tiny(sd1_dir), ERASURE, candidates, SETTINGS)
