"""Vectors stand where the concept stands, and bring the base's prediction nearer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from spare_core.attacks.conditioning import OnConditioning, moved
from spare_core.attacks.inversion import Carrier, Inverted, Try, invert
from spare_core.attacks.scene import wearing
from spare_core.attacks.tokens import OnTokens
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import ConceptError
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.places import concept_places
from spare_core.method.settings import EraseSettings
from spare_core.models.conditioning import Conditioning
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import load_tiny, random_adapter

SETTINGS = EraseSettings(examples=4, retain_examples=2, example_steps=4, prior_texts=1, dtype="float32", device="cpu")
ERASURES = Erasures(
    Erasure("Neon Lines", "Photo", "style", (), "A {context} image in {concept} style.", ("Cat", "Dog"))
)


@pytest.fixture(scope="module")
def bank(denoiser: UNetDenoiser) -> Bank:
    return fill_bank(denoiser, ERASURES, SETTINGS)


def test_a_concept_is_found_where_it_stands(denoiser: UNetDenoiser) -> None:
    prompts = ["A Cat image in Neon Lines style.", "neon lines", "Neon Lines and NEON LINES", "a dog"]
    places = concept_places(denoiser, prompts, "Neon Lines")
    (name,) = (ids[1:-1] for ids in denoiser.token_ids(["Neon Lines"]))
    for prompt, some in list(zip(prompts, places, strict=True))[:3]:
        (ids,) = denoiser.token_ids([prompt])
        assert [ids[place] for place in some] == name
    assert places[1] == list(range(1, 1 + len(name)))
    assert places[2] == places[1], "its first mention"
    (ids,) = denoiser.token_ids(["a dog"])
    assert places[3] == list(range(1, len(ids) - 1)), "where it is not found all of the text may be moved"


def test_vectors_are_added_at_the_places_and_nowhere_else() -> None:
    table = Conditioning(torch.zeros(2, 5, 3))
    one = moved(table, [[1, 2], [3]], torch.ones(1, 3)).prompt_embeds
    assert one.sum(dim=2).tolist() == [[0, 3, 3, 0, 0], [0, 0, 0, 3, 0]]
    several = moved(table, [[1, 2], [3]], torch.tensor([[1.0] * 3, [2.0] * 3, [4.0] * 3])).prompt_embeds
    assert several.sum(dim=2).tolist() == [[0, 3, 6, 12, 0], [0, 0, 0, 3, 6]], "up to the end of the text"
    assert table.prompt_embeds.count_nonzero() == 0


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("kind", [OnConditioning, OnTokens])
def test_what_is_learned_brings_the_bases_prediction_nearer(
    denoiser: UNetDenoiser, bank: Bank, kind: Callable[..., Carrier], vectors: int
) -> None:
    carrier = kind(denoiser, bank, "Neon Lines", "Neon Lines")
    adapter = random_adapter(denoiser, "channel")

    def tried(restart: int) -> Inverted:
        with wearing(denoiser, [adapter]):
            return invert(denoiser, bank.forget, carrier, Try(vectors, 0.1, restart), 15, 4, 1)

    found, again, other = tried(0), tried(0), tried(1)
    assert found.left < found.left_before
    assert found.vectors.shape == carrier.origin(vectors).shape
    assert found.vectors.shape[0] == vectors
    assert found.length > 0
    assert torch.equal(found.vectors, again.vectors)
    assert not torch.equal(found.vectors, other.vectors)
    assert all(parameter.grad is None for update in adapter.updates.values() for parameter in update.parameters())


def test_on_the_base_nothing_is_left_to_bring_back(denoiser: UNetDenoiser, bank: Bank) -> None:
    carrier = OnConditioning(denoiser, bank, "Neon Lines", "Neon Lines")
    found = invert(denoiser, bank.forget, carrier, Try(1, 0.01, 0), 1, 4, 1)
    assert found.left_before < 1e-3


@pytest.mark.parametrize("model", ["sd1_dir", "sdxl_dir"])
def test_a_token_that_is_the_words_own_says_what_the_word_says(model: str, request: pytest.FixtureRequest) -> None:
    """With both of SDXL's text encoders; and afterwards every word is read as before."""
    denoiser = load_tiny(request.getfixturevalue(model))
    prompt = "A Cat image in Photo style."
    plain = denoiser.encode_prompts([prompt])
    learned = denoiser.encode_as(["A Dog image in Photo style."], ["Dog"], denoiser.input_embeddings("Cat"))
    torch.testing.assert_close(learned.prompt_embeds, plain.prompt_embeds)
    for name, tensor in plain.added.items():
        torch.testing.assert_close(learned.added[name], tensor)
    other = denoiser.encode_as([prompt], ["Cat"], denoiser.input_embeddings("Dog"))
    assert not torch.allclose(other.prompt_embeds, plain.prompt_embeds, atol=1e-3)
    assert torch.equal(denoiser.encode_prompts([prompt]).prompt_embeds, plain.prompt_embeds)


@pytest.mark.parametrize("model", ["sd1_dir", "sdxl_dir"])
def test_each_prompt_may_have_tokens_of_its_own(model: str, request: pytest.FixtureRequest) -> None:
    """And their gradient is its own."""
    denoiser = load_tiny(request.getfixturevalue(model))
    prompts = ["A Dog image in Photo style.", "A Dog image in Photo style."]
    vectors = torch.stack([denoiser.input_embeddings("Cat"), denoiser.input_embeddings("Bird")]).requires_grad_(True)
    learned = denoiser.encode_as(prompts, ["Dog"], vectors)
    plain = denoiser.encode_prompts(["A Cat image in Photo style.", "A Bird image in Photo style."])
    torch.testing.assert_close(learned.prompt_embeds, plain.prompt_embeds)
    for name, tensor in plain.added.items():
        torch.testing.assert_close(learned.added[name], tensor)
    (slope,) = torch.autograd.grad(learned.prompt_embeds[0].square().sum(), vectors)
    assert slope[0].any()
    assert not slope[1].any()


def test_a_token_takes_the_place_of_the_name_only(denoiser: UNetDenoiser, bank: Bank) -> None:
    carrier = OnTokens(denoiser, bank, "Neon Lines", "Neon Lines")
    with pytest.raises(ConceptError, match="does not name 'Neon Lines'"):
        carrier.of_prompts(["a cat"], carrier.origin(1))
