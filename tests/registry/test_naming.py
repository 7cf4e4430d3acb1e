"""Registered models' names: safe whatever the concept, one a concept, and never another's."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spare_core.concepts.names import normalise, same_concept
from spare_core.errors import RegistryInputError
from spare_core.registry.naming import bundle_name, check_name, concept_slug, model_name

DIGEST = "0123abcd" * 8
HARD = ["Claude Monet", "café", "cafe", "a/b", "a-b", "a b", "../../etc", "🎨", "日本画", "x" * 300, "x" * 299, "O'B",
        "a%2Fb", "models:/x@y", "İstanbul", "ﬁre", "", ".", "deadbeef00", "neon 0123456789"]  # fmt: skip


@pytest.mark.parametrize(("concept", "slug"), [
    ("Neon Lines", "neon-lines"), ("  neon   LINES ", "neon-lines"), ("Ｎeon Lines", "neon-lines"), ("R2D2", "r2d2"),
])  # fmt: skip
def test_a_plain_concept_is_its_own_slug(concept: str, slug: str) -> None:
    assert concept_slug(concept) == slug


@pytest.mark.parametrize(("concept", "start"), [
    ("Café", "cafe-"), ("AC/DC", "ac-dc-"), ("../../x", "x-"), ("Mega-Man", "mega-man-"), ("x" * 300, "x" * 40 + "-"),
])  # fmt: skip
def test_what_a_slug_loses_is_made_up_for_by_a_hash(concept: str, start: str) -> None:
    assert re.fullmatch(re.escape(start) + "[0-9a-f]{10}", concept_slug(concept))


@given(st.sampled_from(HARD) | st.text(max_size=300))
def test_every_name_is_safe_in_urls_filters_and_paths(concept: str) -> None:
    name = model_name("canvas", DIGEST, concept)
    assert re.fullmatch(r"spare\.canvas\.[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 70
    assert check_name(name) == name


@given(st.sampled_from(HARD) | st.text(max_size=60), st.sampled_from(HARD) | st.text(max_size=60))
@example("foo!", f"foo {concept_slug('foo!')[-10:]}")
@example("🎨", concept_slug("🎨"))
@example("foo-bar", "foo bar")
@example("x" * 300, "x" * 299)
def test_two_concepts_share_a_name_only_if_they_are_the_same(a: str, b: str) -> None:
    assert (concept_slug(a) == concept_slug(b)) == same_concept(a, b)


@given(st.text(max_size=60))
def test_how_a_concept_is_written_makes_no_difference(concept: str) -> None:
    written = "  ".join(unicodedata.normalize("NFKC", concept).split())
    assert concept_slug(written) == concept_slug(concept)
    assert concept_slug(normalise(concept)) == concept_slug(concept) or not same_concept(concept, normalise(concept))


@pytest.mark.parametrize(("source", "base"), [
    ("canvas", "canvas"),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion-v1-5-0123abcd"),
    ("s3://bucket/models/My Model v2.1/", "my-model-v2-1-0123abcd"),
    ("/home/somebody/secret project/sd15", "sd15-0123abcd"),
    ("./canvas", "canvas-0123abcd"),
    ("..", "model-0123abcd"),
    ("C:\\models\\sd15", "sd15-0123abcd"),
])  # fmt: skip
def test_a_base_is_named_by_the_end_of_its_source_and_its_digest(source: str, base: str) -> None:
    assert model_name(source, DIGEST, "Rust") == f"spare.{base}.rust"


@pytest.mark.parametrize("name", ["", "spare", "spare.", "spare.canvas.a'b", "spare.canvas.../x", "other.a.b",
                                  "spare.canvas.a or 1=1", "spare.canvas.a@b", "spare.canvas.A"])  # fmt: skip
def test_a_name_that_is_none_of_ours_goes_no_further(name: str) -> None:
    with pytest.raises(RegistryInputError, match="no name of ours"):
        check_name(name)


@pytest.mark.parametrize(
    ("source", "name"), [("canvas", "spare.canvas"), ("/models/My Model/", "spare.my-model-0123abcd")]
)
def test_a_bundle_is_named_after_its_base_alone(source: str, name: str) -> None:
    """And never shares a name with a concept."""
    assert check_name(bundle_name(source, DIGEST)) == name
    assert model_name(source, DIGEST, "x") == f"{name}.x"
