"""The start that a run begins with: solved, and the one that measures best."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.method.bank import Bank, fill_bank
from spare_core.method.prior import build_prior, prior_moment
from spare_core.method.probes import draw_held_out
from spare_core.method.residual import UNTOUCHED, Meter
from spare_core.method.settings import EraseSettings
from spare_core.method.start import Solver, best_start
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import load_tiny, random_masks

ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", ("a cat", "a dog"))
ERASURES = Erasures(ERASURE)
SETTINGS = EraseSettings(
    examples=2, retain_examples=4, heldout=6, example_steps=2, prior_texts=40, dtype="float32", device="cpu"
)


def bank_of(denoiser: UNetDenoiser) -> Bank:
    return fill_bank(denoiser, ERASURES, SETTINGS)


@pytest.mark.parametrize("which", ["sd1_dir", "sd2_dir", "sdxl_dir"])
def test_the_best_start_is_the_one_that_measures_best(which: str, request: pytest.FixtureRequest) -> None:
    denoiser = load_tiny(request.getfixturevalue(which))
    meter = Meter(denoiser, draw_held_out(denoiser, ERASURES, SETTINGS, "choose"))
    fresh = Adapter.initialise(denoiser, random_masks(denoiser, "none"), 4, 4.0, 0)
    prior = prior_moment(build_prior(denoiser, 100), denoiser, ERASURES)
    found = best_start(fresh, denoiser, ERASURES, prior, bank_of(denoiser), meter, SETTINGS)
    assert found.measured == meter.measure(found.adapter)
    assert found.measured.residual < 1.0
    assert not any(update.delta().any() for update in fresh.updates.values()), "the fresh adapter was changed"
    changed = {name for name, update in found.adapter.updates.items() if update.delta().any()}
    assert changed == set(denoiser.text_layers())
    assert all(".attn2.to_" in name for name in changed)


def test_where_nothing_can_hold_a_solution_none_is_said_to_be_there(denoiser: UNetDenoiser) -> None:
    masks = {
        name: LayerMask(
            torch.ones(layer.out_features).bool(),
            torch.ones(layer.in_features).bool(),
            torch.eye(layer.out_features, layer.in_features).bool(),
        )
        for name, layer in denoiser.target_layers().items()
    }
    fresh = Adapter.initialise(denoiser, masks, 4, 4.0, 0)
    meter = Meter(denoiser, draw_held_out(denoiser, ERASURES, SETTINGS, "choose"))
    found = best_start(fresh, denoiser, ERASURES, torch.zeros(()), bank_of(denoiser), meter, SETTINGS)
    assert (found.adapter, found.ridge, found.measured) == (fresh, None, UNTOUCHED)


def test_where_no_solution_measures_better_nothing_is_changed(denoiser: UNetDenoiser) -> None:
    """Drift is counted a million times over: every ridge costs more than it brings."""
    held_out = draw_held_out(denoiser, ERASURES, SETTINGS, "choose")
    harsh = dataclasses.replace(held_out, retain=held_out.retain._replace(unit=held_out.retain.unit * 1e-6))
    fresh = Adapter.initialise(denoiser, random_masks(denoiser, "none"), 4, 4.0, 0)
    prior = prior_moment(build_prior(denoiser, 100), denoiser, ERASURES)
    found = best_start(fresh, denoiser, ERASURES, prior, bank_of(denoiser), Meter(denoiser, harsh), SETTINGS)
    assert found.ridge is None
    assert found.adapter is fresh


def test_values_differ_by_the_ridge_and_keys_do_not(denoiser: UNetDenoiser) -> None:
    fresh = Adapter.initialise(denoiser, random_masks(denoiser, "none"), 4, 4.0, 0)
    prior = prior_moment(build_prior(denoiser, 40), denoiser, ERASURES)
    solver = Solver(fresh, denoiser, ERASURES, prior, bank_of(denoiser), SETTINGS)
    loose, tight = solver.solve(0.1), solver.solve(100.0)
    for name in denoiser.text_layers():
        one, other = (adapter.updates[name].delta() for adapter in (loose, tight))
        assert one.any()
        assert torch.equal(one, other) == name.endswith("to_k"), name
        if name.endswith("to_v"):
            assert other.norm() < one.norm()


@pytest.mark.parametrize(("heldout", "factor"), [(6, 2.0), (1, 2**0.5)])
def test_the_ridge_is_the_best_of_its_neighbours_of_a_list_of_nearer_ones(
    denoiser: UNetDenoiser, heldout: int, factor: float
) -> None:
    """``heldout`` says from how many names on it is a long list."""
    settings = dataclasses.replace(SETTINGS, heldout=heldout)
    both = Erasures(ERASURE, Erasure("Rust", "Winter", "style", ("Cubism",), "{context} in {concept}", ("a cat",)))
    meter = Meter(denoiser, draw_held_out(denoiser, both, settings, "choose"))
    fresh = Adapter.initialise(denoiser, random_masks(denoiser, "none"), 4, 4.0, 0)
    prior = prior_moment(build_prior(denoiser, 40), denoiser, both)
    bank = fill_bank(denoiser, both, settings)
    found = best_start(fresh, denoiser, both, prior, bank, meter, settings)
    assert found.ridge is not None
    solver = Solver(fresh, denoiser, both, prior, bank, settings)
    beside = [meter.measure(solver.solve(found.ridge * by)) for by in (factor, 1 / factor)]
    costs = [one.cost(settings.drift_price) for one in (found.measured, *beside)]
    assert costs[0] <= min(costs[1:])
