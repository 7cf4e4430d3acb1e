"""What attention gathers is what the model's own attention passes on, and its moments are of what they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.method.bank import fill_bank
from spare_core.method.gather import Asked, Queries, Texts, alike_weights, ask, encode_texts, gather, gathered_moments
from spare_core.method.settings import EraseSettings
from spare_core.method.solve import Encoder
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import load_tiny, random_masks

ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", ("a cat", "a dog"))
ERASURES = Erasures(ERASURE)
SETTINGS = EraseSettings(
    examples=2, retain_examples=4, example_steps=4, prior_texts=20, prior_weight=2.0, dtype="float32", device="cpu"
)


@pytest.mark.parametrize("which", ["sd1_dir", "sd2_dir", "sdxl_dir"])
def test_it_is_what_the_models_attention_passes_on(which: str, request: pytest.FixtureRequest) -> None:
    """By its own forward pass: what goes into each output projection."""
    denoiser = load_tiny(request.getfixturevalue(which))
    table = denoiser.encode_prompts(["a cat in Neon"])
    noisy = torch.randn(1, *denoiser.latent_shape(), generator=torch.Generator().manual_seed(0))
    passed: dict[str, Tensor] = {}
    queries: dict[str, Tensor] = {}
    modules = dict(denoiser.weights.named_modules())
    attentions = denoiser.text_attentions()
    assert {layer for one in attentions for layer in (one.key, one.value)} == {*denoiser.text_layers()}
    for one in attentions:
        out = modules[one.value.replace("to_v", "to_out.0")]
        out.register_forward_pre_hook(lambda _, inputs, name=one.value: passed.update({name: inputs[0]}))
        one.query.register_forward_hook(lambda _, __, output, name=one.value: queries.update({name: output}))
    with torch.no_grad():
        denoiser.predict(noisy, torch.tensor([500]), table)
    layers = denoiser.text_layers()
    for one in attentions:
        tokens = table.prompt_embeds
        gathered = gather(one, queries[one.value], tokens, layers[one.key](tokens))
        by_head = gathered.unflatten(0, (one.heads, -1))
        values = layers[one.value].weight.unflatten(0, (one.heads, -1))
        expected = torch.cat([x @ w.T for x, w in zip(by_head, values, strict=True)], dim=1)
        torch.testing.assert_close(passed[one.value][0], expected, rtol=1e-4, atol=1e-5)


def test_the_queries_are_those_of_the_banks_kept_states(denoiser: UNetDenoiser) -> None:
    bank = fill_bank(denoiser, ERASURES, SETTINGS)
    asked = ask(denoiser, bank, 0)
    of_eight = ask(denoiser, fill_bank(denoiser, ERASURES, dataclasses.replace(SETTINGS, example_steps=8)), 0)
    assert of_eight.names == asked.names, "of eight states of a trajectory four"
    assert asked.names == [bank.names[row] for row in bank.retain.student.tolist()]
    assert "Photo" in asked.names
    assert {*asked.layers} == {one.value for one in denoiser.text_attentions()}
    for own, empty in asked.layers.values():
        assert own.shape == empty.shape
        assert own.shape[:2] == (len(asked.names), 4)
    # What comes before the first cross-attention has read no prompt.
    assert any(not torch.equal(own, empty) for own, empty in asked.layers.values())


def test_moments_are_of_what_is_gathered_on_the_surrogates_states(denoiser: UNetDenoiser) -> None:
    one = denoiser.text_attentions()[0]
    layers = denoiser.text_layers()
    width, inner = layers[one.key].in_features, layers[one.key].out_features
    chance = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    adapter = Adapter.initialise(denoiser, random_masks(denoiser, "none"), 2, 2.0, 0)
    adapter.updates[one.key].up.data = random(inner, 2)
    sizes = {each.value: layers[each.key].out_features for each in denoiser.text_attentions()}
    queries = {name: Queries(random(3, 2, size), random(3, 2, size)) for name, size in sizes.items()}
    asked = Asked(queries, ["Photo", "Rust", "Photo"])
    concept, surrogate, rust, generic, empty = (random(2, 5, width) for _ in range(5))
    texts = Texts([("Photo", [(concept, surrogate)])], [("Rust", rust)], 0.5, generic, 2.0, empty)
    found = gathered_moments(denoiser, asked, texts, adapter)[one.value]
    own, under_empty = queries[one.value]

    def gathered(asking: Tensor, prompts: Tensor, new: bool) -> Tensor:
        keys = layers[one.key](prompts) + (adapter.updates[one.key](prompts) if new else 0)
        return gather(one, asking, prompts, keys).double()

    with torch.no_grad():
        x, t = gathered(own[[0, 2]], concept, True), gathered(own[[0, 2]], surrogate, False)
        sides = [(0.5, own[[1]], rust), (1.0, under_empty, empty), *((2.0 / 3, own[[i]], generic) for i in range(3))]
        kept = [(w, gathered(asking, k, True), gathered(asking, k, False)) for w, asking, k in sides]
    expected = {
        "concept": x.T @ x / len(x),
        "shift": (t - x).T @ x / len(x),
        "retained": sum(w * new.T @ new / len(new) for w, new, _ in kept),
        "returned": sum(w * (old - new).T @ new / len(new) for w, new, old in kept),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-6)


def test_texts_are_of_the_purpose_half_of_them_in_contexts_of_the_vocabulary(denoiser: UNetDenoiser) -> None:
    texts = encode_texts(Encoder(denoiser), ERASURES, SETTINGS, "train", 2)
    assert [(name, [(len(x), len(t)) for x, t in halves]) for name, halves in texts.pairs] == [
        ("Photo", [(2, 2), (18, 18)])
    ]  # fmt: skip
    assert [(name, len(k)) for name, k in texts.kept] == [("Photo", 2), ("Rust", 2), ("Winter", 2)]
    assert (len(texts.generic), texts.generic_weight, len(texts.empty)) == (16, 2.0, 1)
    further = encode_texts(Encoder(denoiser), ERASURES, SETTINGS, "solve", 9)
    assert len(further.generic) == 20, "no more than there are"
    assert torch.equal(further.generic[:16], texts.generic), "for every purpose the same"
    four = Erasures(ERASURE, *(dataclasses.replace(ERASURE, concept=name) for name in ("Ink", "Oil", "Lino")))
    listed = encode_texts(Encoder(denoiser), four, SETTINGS, "train", 2)
    assert (texts.kept_weight, texts.generic_weight) == (1.0, 2.0)
    assert (listed.kept_weight, listed.generic_weight) == (pytest.approx(4**-0.125), pytest.approx(2.0 * 4**0.4375))
    none = encode_texts(Encoder(denoiser), ERASURES, dataclasses.replace(SETTINGS, prior_weight=0.0), "train", 2)
    assert len(none.generic) == 0


def test_of_each_concept_as_much_is_left_however_near_its_surrogate_lies() -> None:
    assert alike_weights([0.3]) == [1.0]
    assert alike_weights([1.0, 2.0]) == pytest.approx([4 / 3, 2 / 3])
    weights = alike_weights([1e-9, 1.0, 1.0, 0.0])
    assert weights[0] == pytest.approx(4 * weights[3]), "not without bounds"
    assert sum(weights) == pytest.approx(4)
