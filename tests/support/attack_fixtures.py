"""An adapter to attack, and budgets as small as they get; taken with
``pytest_plugins = ("tests.support.attack_fixtures",)``."""

from __future__ import annotations

import dataclasses

import pytest

from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter
from spare_core.attacks import besieged
from spare_core.attacks.budgets import BUDGETS
from spare_core.concepts.concept import Erasure
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import manifest_for, random_adapter
from tests.support.attacking import PLAIN, QUICK


@pytest.fixture
def small_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little work as there can be."""
    monkeypatch.setitem(BUDGETS, "quick", QUICK)
    monkeypatch.setattr(besieged, "plain", lambda seed: dataclasses.replace(PLAIN, seed=seed))


@pytest.fixture(scope="module")
def stored(denoiser: UNetDenoiser, tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    """An adapter of random weights that says it erases Neon Lines."""
    folder = tmp_path_factory.mktemp("attacked") / "adapter"
    template = "A {context} image in {concept} style."
    erasure = Erasure("Neon Lines", "Photo", "style", ("Rust",), template, ("Cat", "Dog"))
    manifest = {**manifest_for(denoiser), **erasure.as_dict(), "settings": PLAIN.as_dict()}
    save_adapter(folder, random_adapter(denoiser, "channel"), denoiser.lora_prefix, manifest)
    return load_adapter(folder)
