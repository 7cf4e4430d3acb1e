"""Drift over what a suite has is that of the adapter, on states that are the base model's and the same for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.evaluation import suite_drift
from spare_core.evaluation.suite import DOMAINS, Domain
from spare_core.evaluation.suite_drift import SuiteDrift, asked_of
from spare_core.method.settings import EraseSettings
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import load_tiny, random_adapter
from tests.support.grids import OBJECTS, STYLES, small_suite

SUITE = small_suite()
SETTINGS = EraseSettings(heldout=2, example_steps=2, rank=2, dtype="float32", device="cpu")


def erasing(concept: str, surrogate: str, kind: str) -> Erasures:
    """One erasure, in a template that is not the suite's."""
    place = "{context} in {concept}" if kind == "style" else "{concept} in {context}"
    return Erasures(Erasure(concept, surrogate, kind, (), place, ("Bear", "Frog")))  # type: ignore[arg-type]


NEON = erasing("Neon Lines", "Photo", "style")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "states"


def drift_of(denoiser: UNetDenoiser, domain: Domain = "style") -> SuiteDrift:
    return SuiteDrift(denoiser, "base", SUITE, domain, SETTINGS)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_concept_is_asked_about_in_contexts_of_the_other_domain(domain: Domain) -> None:
    asked = asked_of(SUITE, domain)
    mine, other = (STYLES, OBJECTS) if domain == "style" else (OBJECTS, STYLES)
    assert [one.name for one in asked] == [name for name in mine for _ in range(3)]
    for name in mine:
        assert {one.context for one in asked if one.name == name} == {*other}


def test_all_but_the_erased_drift_and_without_an_adapter_nothing_does(denoiser: UNetDenoiser) -> None:
    drift = drift_of(denoiser)
    still = drift.measure(NEON)
    assert list(still) == ["Photo", "Rust"]
    assert max(still.values()) < 1e-6
    moved = drift.measure(NEON, random_adapter(denoiser, "channel"))
    assert min(moved.values()) > 1e-3


def test_drift_is_in_units_of_the_distance_between_concept_and_surrogate(denoiser: UNetDenoiser) -> None:
    """The same change, measured against another pair: figures differ by one factor, that of the two distances."""
    adapter = random_adapter(denoiser, "channel")
    first = drift_of(denoiser).measure(NEON, adapter)
    second = drift_of(denoiser).measure(erasing("Neon Lines", "Watercolor", "style"), adapter)
    ratios = {name: second[name] / first[name] for name in first}
    assert ratios["Photo"] == pytest.approx(ratios["Rust"], rel=1e-4)
    assert ratios["Photo"] != pytest.approx(1.0, rel=1e-2)


def test_what_is_erased_is_no_context_either(denoiser: UNetDenoiser) -> None:
    """Of kept styles nothing is asked with a cat; where all objects are erased, nothing at all."""
    adapter = random_adapter(denoiser, "channel")
    some = Erasures(*NEON.parts, *erasing("Cat", "Dog", "object").parts)
    drift = drift_of(denoiser)
    fewer, alone = drift.measure(some, adapter), drift.measure(NEON, adapter)
    assert fewer.keys() == alone.keys()
    assert fewer["Rust"] != pytest.approx(alone["Rust"], rel=1e-6)
    none_left = [part for name in OBJECTS for part in erasing(name, "Bear", "object").parts]
    assert drift.measure(Erasures(*NEON.parts, *none_left), adapter) == {}


def test_the_bases_states_are_sampled_once(
    denoiser: UNetDenoiser, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = drift_of(denoiser)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
    monkeypatch.setattr(suite_drift, "sample_trajectories", None)
    again = drift_of(denoiser)
    for name in ("noisy", "timesteps", "teacher"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_whatever_changes_the_states_changes_their_key(denoiser: UNetDenoiser, cache: Path, sd2_dir: Path) -> None:
    for changed in (
        {}, {"base_digest": "other"}, {"domain": "object"}, {"suite": small_suite(template="{style} {object}")},
        {"settings": EraseSettings(example_steps=3, dtype="float32", device="cpu")},
        {"settings": EraseSettings(example_steps=2, guidance=2.0, dtype="float32", device="cpu")},
        {"denoiser": load_tiny(sd2_dir)},
    ):  # fmt: skip
        common = {"denoiser": denoiser, "base_digest": "base", "suite": SUITE, "domain": "style", "settings": SETTINGS}
        before = len(list(cache.glob("*")))
        SuiteDrift(**{**common, **changed})
        assert len(list(cache.glob("*"))) == before + 1
