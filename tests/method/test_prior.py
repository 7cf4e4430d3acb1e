"""The prior is the second moment of texts about anything but what is erased, and keeps a solution off them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.method.prior import build_prior, own_texts, prior_moment
from spare_core.method.settings import EraseSettings
from spare_core.method.solve import Encoder, overwrite, prompt_moments
from spare_core.models.unet import UNetDenoiser
from spare_core.models.vocabulary import whole_words
from spare_core.runs.prior import base_prior
from tests.support.adapters import random_masks
from tests.support.toy import ToyDenoiser

ERASURES = Erasures(
    Erasure("Neon Lines", "Photo", "style", ("Rust",), "{context} in {concept} style", ("a cat", "a dog"))
)


def moment(denoiser: UNetDenoiser, texts: tuple[str, ...]) -> torch.Tensor:
    k = denoiser.encode_prompts(texts).prompt_embeds.double().flatten(0, 1)
    return k.T @ k / len(k)


def test_it_is_the_mean_over_generic_texts_and_the_erasures_own_without_what_mentions_them(
    denoiser: UNetDenoiser,
) -> None:
    other = Erasures(Erasure("cat", "dog", "object", (), "a {concept}", ()))
    prior = build_prior(denoiser, 200)
    assert len(prior.texts) == 200
    assert any(other.mentioned(text) for text in prior.texts)
    generic = tuple(text for text in prior.texts if not other.mentioned(text))
    own = own_texts(denoiser, other, 50)
    assert 40 <= len(own) <= 50
    assert all(text.startswith("a ") and not other.mentioned(text) for text in own)
    expected = (moment(denoiser, generic) + moment(denoiser, own)) / 2
    torch.testing.assert_close(prior_moment(prior, denoiser, other), expected, rtol=1e-6, atol=1e-9)


def test_a_model_without_words_has_a_prior_of_nothing() -> None:
    toy = ToyDenoiser()
    prior = build_prior(toy, 100)
    assert prior.texts == ()
    assert not prior_moment(prior, toy, ERASURES).any()


def test_what_nobody_named_is_left_alone(denoiser: UNetDenoiser) -> None:
    """In the outputs of the layers, of texts that the prior has not seen."""
    settings = EraseSettings(rank=4, prior_weight=30.0)
    prior = prior_moment(build_prior(denoiser, 400), denoiser, ERASURES)
    unseen = denoiser.encode_prompts(["a boat with a hat", "a guitar in winter style"]).prompt_embeds.flatten(0, 1)

    def moved(weight: float) -> float:
        adapter = Adapter.initialise(denoiser, random_masks(denoiser, "none"), 4, 4.0, 0)
        chosen = dataclasses.replace(settings, prior_weight=weight)
        moments = prompt_moments(Encoder(denoiser), ERASURES, prior, chosen, "train")
        overwrite(adapter, denoiser, dict.fromkeys(denoiser.text_layers(), moments), 0.3)
        return sum(float(adapter.updates[name](unseen).square().sum()) for name in denoiser.text_layers())

    assert moved(30.0) < 0.5 * moved(0.0)


# --- kept ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_encoded_once_for_a_base_model(denoiser: UNetDenoiser, cache: Path) -> None:
    settings = EraseSettings(prior_texts=100)
    first = base_prior(denoiser, "a" * 64, settings)
    (file,) = cache.rglob("*.safetensors")
    untouched = SimpleNamespace(words=denoiser.words, dtype=denoiser.dtype, device=denoiser.device)  # cannot encode
    again = base_prior(untouched, "a" * 64, settings)  # type: ignore[arg-type]
    assert (again.texts, again.tokens) == (first.texts, first.tokens)
    assert torch.equal(again.total, first.total)
    base_prior(denoiser, "b" * 64, settings)
    base_prior(denoiser, "a" * 64, dataclasses.replace(settings, prior_texts=99))
    assert len([*cache.rglob("*.safetensors")]) == 3
    file.write_bytes(b"torn")
    assert torch.equal(base_prior(denoiser, "a" * 64, settings).total, first.total)


def test_a_cache_that_cannot_be_used_costs_time_only(denoiser: UNetDenoiser, cache: Path) -> None:
    cache.write_text("a file")
    settings = EraseSettings(prior_texts=20)
    assert torch.equal(base_prior(denoiser, "a" * 64, settings).total, build_prior(denoiser, 20).total)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["!", "th", "the</w>", "cat</w>", "a</w>", "4th</w>", "ca", "cat"], ["the", "cat"]),
        (["\u2581the", "\u2581cat", "s", "\u2581", "\u2581of"], ["the", "cat"]),
        (["\u0120the", "\u0120cat", "s"], ["the", "cat"]),
        (["x", "yz"], []),
    ],
    ids=["clip", "sentencepiece", "byte-level", "none"],
)
def test_words_are_whole_tokens_in_the_vocabularys_order(tokens: list[str], words: list[str]) -> None:
    tokenizer = SimpleNamespace(get_vocab=lambda: {token: i for i, token in enumerate(tokens)})
    assert whole_words(tokenizer) == words


def test_canvas_knows_its_own_words(denoiser: UNetDenoiser) -> None:
    assert {"cat", "dog", "rust", "winter"} <= {*denoiser.words()}
