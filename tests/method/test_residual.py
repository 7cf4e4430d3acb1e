"""Residual and drift are ratios that can be worked out by hand where the model is linear."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from spare_core.adapters.low_rank import Adapter, DeltaUpdate
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.prompts import GENERIC, NEAR, NULL, Purpose
from spare_core.errors import InputError, StageError
from spare_core.method.neighbours import nearest_unnamed
from spare_core.method.probes import draw_again, draw_held_out
from spare_core.method.residual import NULL_NAME, Measurement, Meter, look_again
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from spare_core.runs.results import load_probes, save_probes
from tests.support.adapters import random_adapter
from tests.support.toy import CONCEPT, EMBEDDINGS, KEPT, SURROGATE, Call, ToyDenoiser, toy_held_out

ERASURE = Erasure("Neon", "Photo", "style", ("Rust", "Winter"), "{context} in {concept}", ("a cat", "a dog"))
ERASURES = Erasures(ERASURE)
SETTINGS = EraseSettings(heldout=6, example_steps=2, dtype="float32", device="cpu")


def overwriting(denoiser: ToyDenoiser, share: float = 1.0) -> Adapter:
    """An update D of ``text`` with D c = share * (text(s) - text(c)) and D s = 0, as c and s are orthogonal."""
    text, concept = denoiser.weights.text.weight, EMBEDDINGS[CONCEPT]
    delta = torch.outer(text @ (EMBEDDINGS[SURROGATE] - concept), concept) * share
    return Adapter({"text": DeltaUpdate(delta)})


def test_where_nothing_changed_the_residual_is_one_and_the_drift_zero() -> None:
    denoiser = ToyDenoiser(timed=True)
    meter = Meter(denoiser, toy_held_out(denoiser))
    for measured in (meter.measure(), meter.measure(Adapter({"text": DeltaUpdate(torch.zeros(3, 2))}))):
        assert measured.residual == pytest.approx(1.0, rel=1e-6)
        assert measured.drift == {"Photo": 0.0, "Rust": 0.0, NULL_NAME: 0.0}
        assert measured.mean_drift == 0.0


def test_where_the_concept_is_overwritten_the_residual_is_zero() -> None:
    denoiser = ToyDenoiser(timed=True)
    measured = Meter(denoiser, toy_held_out(denoiser)).measure(overwriting(denoiser))
    assert measured.residual == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("share", [0.25, 0.5, 2.0])
def test_the_residual_is_the_square_of_what_is_left(share: float) -> None:
    denoiser = ToyDenoiser()
    measured = Meter(denoiser, toy_held_out(denoiser)).measure(overwriting(denoiser, share))
    assert measured.residual == pytest.approx((1 - share) ** 2, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_a_concept_has_moved_is_counted_from_the_base_model(share: float) -> None:
    """Whichever way: one that is drawn as before counts as back even where its surrogate is nowhere near."""
    denoiser = ToyDenoiser()
    moved = Meter(denoiser, toy_held_out(denoiser)).moved(overwriting(denoiser, share))
    assert [*moved.values()] == pytest.approx([share**2] * len(moved), abs=1e-6)
    assert moved


def test_drift_is_the_squared_change_in_units_of_the_gap() -> None:
    denoiser = ToyDenoiser()
    measured = Meter(denoiser, toy_held_out(denoiser)).measure(overwriting(denoiser))
    # The update turns a prompt by its share of the concept, and the gap is the unit: drift = (k . c)^2.
    expected = {"Photo": 0.0, "Rust": float(EMBEDDINGS[KEPT] @ EMBEDDINGS[CONCEPT]) ** 2, NULL_NAME: 0.0}
    assert measured.drift == pytest.approx(expected, abs=1e-6)
    assert measured.mean_drift == pytest.approx(sum(expected.values()) / 3, abs=1e-6)


def test_drift_is_the_mean_over_the_rows_that_name_the_concept() -> None:
    denoiser = ToyDenoiser()
    delta = 0.1 * torch.eye(3)
    meter = Meter(denoiser, toy_held_out(denoiser))
    measured = meter.measure(Adapter({"mix": DeltaUpdate(delta)}))
    call = denoiser.calls[-1]  # both sides: rows of every concept
    unit = (denoiser.weights.text.weight @ (EMBEDDINGS[CONCEPT] - EMBEDDINGS[SURROGATE])).pow(2).mean()
    rows = (call.embeds == EMBEDDINGS[KEPT]).all(dim=1)
    expected = (call.noisy[rows] @ delta.T).pow(2).mean() / unit
    assert measured.drift["Rust"] == pytest.approx(float(expected), rel=1e-5)


def test_the_unit_of_drift_is_the_mean_gap_on_all_of_the_retain_side() -> None:
    denoiser = ToyDenoiser(timed=True)  # prompts count by t / T
    held_out = toy_held_out(denoiser)
    measured = Meter(denoiser, held_out).measure(overwriting(denoiser))
    call = Call(*(part[-len(held_out.retain.unit) :] for part in denoiser.calls[-1]))  # beside the forget side
    weight = (call.timesteps / denoiser.num_timesteps).pow(2)
    rows = (call.embeds == EMBEDDINGS[KEPT]).all(dim=1)
    expected = (EMBEDDINGS[KEPT] @ EMBEDDINGS[CONCEPT]) ** 2 * weight[rows].mean() / weight.mean()
    assert measured.drift["Rust"] == pytest.approx(float(expected), rel=1e-5)


def test_adapters_that_are_measured_together_add_up() -> None:
    denoiser = ToyDenoiser()
    half = overwriting(denoiser, 0.5)
    meter = Meter(denoiser, toy_held_out(denoiser))
    assert meter.measure(half, overwriting(denoiser, 0.5)).residual == pytest.approx(0.0, abs=1e-12)
    assert meter.measure(half).residual == pytest.approx(0.25, rel=1e-5)


def test_measuring_leaves_nothing_behind_and_repeats() -> None:
    denoiser = ToyDenoiser()
    meter = Meter(denoiser, toy_held_out(denoiser))
    first = meter.measure(overwriting(denoiser, 0.5))
    assert not denoiser.weights.text._forward_hooks
    assert meter.measure(overwriting(denoiser, 0.5)) == first
    assert meter.measure().residual == pytest.approx(1.0, rel=1e-6)


def test_the_batch_size_is_no_part_of_the_measurement() -> None:
    measured = []
    for rows in (64, 3):
        denoiser = ToyDenoiser(timed=True, rows_at_once=rows)
        measured.append(Meter(denoiser, toy_held_out(denoiser)).measure(overwriting(denoiser, 0.3)))
    whole, pieces = measured
    assert pieces.residual == pytest.approx(whole.residual, rel=1e-5)
    assert pieces.drift == pytest.approx(whole.drift, rel=1e-5, abs=1e-9)


# --- what is held out ------------------------------------------------------------------------------------------------


def test_probes_of_the_frozen_model_itself_find_nothing_changed(denoiser: UNetDenoiser) -> None:
    """The answers kept are those of exactly these latents, timesteps and prompts."""
    measured = Meter(denoiser, draw_held_out(denoiser, ERASURES, SETTINGS, "report")).measure()
    assert measured.residual == pytest.approx(1.0, rel=1e-4)
    assert list(measured.drift) == ["Photo", "Rust", "Winter", NULL_NAME]
    assert max(measured.drift.values()) < 1e-6


@pytest.mark.parametrize("resting", [torch.float32, torch.bfloat16])
def test_what_is_measured_does_not_depend_on_the_precision_of_training(sd1_dir: Path, resting: torch.dtype) -> None:
    """In half precision, whatever changes anything reads as a drift of its rounding: of 1e-3, where it is 1e-9."""
    denoiser = load_denoiser(str(sd1_dir), "cpu", "bfloat16")
    denoiser.weights.to(resting)  # as on an accelerator
    meter = Meter(denoiser, draw_held_out(denoiser, ERASURES, SETTINGS, "report"))
    adapter = random_adapter(denoiser, "none")
    for update in adapter.updates.values():
        update.up.data *= 1e-6
    measured = meter.measure(adapter)
    assert 0 < max(*measured.drift.values(), measured.unnamed_drift or 0.0) < 1e-7
    assert (denoiser.dtype, denoiser.weights.dtype) == (torch.bfloat16, resting)


def test_every_kept_concept_is_measured_at_all_times_however_few_trajectories(denoiser: UNetDenoiser) -> None:
    held_out = draw_held_out(denoiser, ERASURES, dataclasses.replace(SETTINGS, heldout=1, example_steps=4), "choose")
    named = [held_out.names[row] for row in held_out.retain.prompt.tolist()]
    assert {name: named.count(name) for name in named} == {"Photo": 2, "Rust": 2, "Winter": 2, GENERIC: 6, NULL: 3}
    early, late = held_out.retain.timesteps[:6].reshape(3, 2).unbind(1)
    assert (early >= 0.6 * denoiser.num_timesteps).all()
    assert (late < 0.7 * denoiser.num_timesteps).all()
    assert set(held_out.retain.timesteps[6:].tolist()) <= {*early.tolist(), *late.tolist()}
    texts = held_out.retain.prompt[9:].tolist()
    assert len(set(texts)) == len(texts)


def test_each_kept_concept_may_be_measured_on_more_trajectories(denoiser: UNetDenoiser) -> None:
    """As many of the concept's own side as before."""
    few = dataclasses.replace(SETTINGS, heldout=2, example_steps=4)
    held_out = draw_held_out(denoiser, ERASURES, few, "choose", each=2)
    named = [held_out.names[row] for row in held_out.retain.prompt.tolist()]
    assert {name: named.count(name) for name in named} == {"Photo": 4, "Rust": 4, "Winter": 4, GENERIC: 12, NULL: 6}
    assert len(held_out.forget.timesteps) == 4


def test_what_is_reported_includes_the_nearest_words_that_nobody_named(denoiser: UNetDenoiser) -> None:
    """Of the report alone, each on two trajectories, apart from what is kept and from generic texts."""
    held_out = draw_held_out(denoiser, ERASURES, SETTINGS, "report")
    near = {name for name in held_out.names if name.startswith(NEAR)}
    assert near == {f"{NEAR}{word}" for word in nearest_unnamed(denoiser, ERASURES, SETTINGS, 3)}
    assert len(near) == 3
    measured = Meter(denoiser, held_out).measure(random_adapter(denoiser, "channel"))
    assert {f"{NEAR}{word}" for word in measured.near_drift} == near
    assert set(measured.drift) == {"Photo", "Rust", "Winter", NULL_NAME}
    assert all(drift > 0 for drift in measured.near_drift.values())
    chosen_by = draw_held_out(denoiser, ERASURES, SETTINGS, "choose")
    assert not [name for name in chosen_by.names if name.startswith(NEAR)]


def test_probes_survive_their_file(denoiser: UNetDenoiser, tmp_path: Path) -> None:
    held_out = draw_held_out(denoiser, ERASURES, SETTINGS, "report")
    save_probes(held_out, tmp_path / "a.safetensors")
    loaded = load_probes(tmp_path / "a.safetensors", denoiser.device)
    assert Meter(denoiser, loaded).measure() == Meter(denoiser, held_out).measure()
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(StageError, match=r"a\.safetensors holds no probes"):
        load_probes(tmp_path / "a.safetensors", denoiser.device)


@pytest.mark.parametrize(("purpose", "said"), [("choose", "the concept and its surrogate"), ("report", "no concept")])
def test_a_model_that_cannot_tell_concept_and_surrogate_apart_is_refused(
    denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch, purpose: Purpose, said: str
) -> None:
    monkeypatch.setattr(UNetDenoiser, "predict", lambda self, noisy, timesteps, conditioning: torch.zeros_like(noisy))
    with pytest.raises(InputError, match=f"same noise for .*{said}"):
        draw_held_out(denoiser, ERASURES, SETTINGS, purpose)


def test_a_measurement_is_written_with_its_mean() -> None:
    assert Measurement({"c": 0.5}, {"a": 0.1, "b": 0.3}, 0.4).as_dict() == {
        "residual": 0.5,
        "residuals": {"c": 0.5},
        "drift": {"a": 0.1, "b": 0.3},
        "mean_drift": pytest.approx(0.2),
        "unnamed_drift": 0.4,
        "near_drift": {},
    }


@pytest.mark.parametrize(("unnamed", "cost"), [(None, 1.3), (0.1, 1.3), (0.4, 2.1)])
def test_drift_of_what_nobody_named_counts_as_much_as_that_of_what_is_named(unnamed: float | None, cost: float) -> None:
    assert Measurement({"c": 0.5}, {"a": 0.1, "b": 0.3}, unnamed).cost(4.0) == pytest.approx(cost)


def test_of_many_names_drift_counts_less() -> None:
    many = Measurement({f"n{i}": 0.5 for i in range(1024)}, {"a": 0.2})
    assert many.cost(4.0) == pytest.approx(0.5 + 4.0 / 2 * 0.2)


# --- lists -----------------------------------------------------------------------------------------------------------


def named_after(*names: str) -> Erasures:
    """Each becomes Photo or Pencil in turn."""
    surrogates = ("Photo", "Pencil")
    return Erasures(
        *(
            Erasure(name, surrogates[i % 2], "style", ("Rust",), "{context} in {concept}", ("a cat", "a dog"))
            for i, name in enumerate(names)
        )
    )


@pytest.mark.parametrize(("purpose", "states"), [("choose", 1), ("report", 2)])
def test_of_a_long_list_each_name_is_asked_about_on_its_surrogates_trajectory(
    denoiser: UNetDenoiser, purpose: Purpose, states: int
) -> None:
    erasures = named_after("Neon", "Winter", "Mosaic")
    settings = dataclasses.replace(SETTINGS, heldout=2, example_steps=4)
    held_out = draw_held_out(denoiser, erasures, settings, purpose)
    asked = [held_out.names[row] for row in held_out.forget.prompt.tolist()]
    assert asked == [name for name in ("Neon", "Winter", "Mosaic") for _ in range(states)]
    kept = [held_out.names[row] for row in held_out.retain.prompt.tolist()]
    for i, name in enumerate(asked):
        surrogate = erasures.surrogate(name)
        rows = [row for row, other in enumerate(kept) if other == surrogate]
        passed = [row for row in rows if torch.equal(held_out.retain.noisy[row], held_out.forget.noisy[i])]
        assert passed, f"{name} is not asked about where {surrogate} passes"
        assert torch.equal(held_out.retain.teacher[passed[0]], held_out.forget.teacher[i])
    measured = Meter(denoiser, held_out).measure()
    assert set(measured.residuals) == {"Neon", "Winter", "Mosaic"}
    assert measured.residual == pytest.approx(1.0, rel=1e-4)


def test_a_name_of_a_long_list_that_seems_to_be_left_is_asked_about_again(denoiser: UNetDenoiser) -> None:
    """On four trajectories of its own; the others keep their figures."""
    erasures = named_after("Neon", "Winter", "Mosaic", "Ink", "Oil")
    settings = dataclasses.replace(SETTINGS, heldout=2, example_steps=4)
    adapter = random_adapter(denoiser, "none")
    first = Measurement({"Neon": 0.7, "Winter": 0.1, "Mosaic": 0.1, "Ink": 0.2, "Oil": 0.3}, {"Rust": 0.1})
    second = look_again(denoiser, erasures, settings, adapter, first)
    assert second.residuals["Neon"] not in (0.7, pytest.approx(1.0))
    assert second == dataclasses.replace(first, residuals=first.residuals | {"Neon": second.residuals["Neon"]})
    again = draw_again(denoiser, erasures, settings, ["Neon"])
    assert {again.names[row] for row in again.forget.prompt.tolist()} == {"Neon"}
    assert len(again.forget.timesteps) == 4 * 2
    asked = draw_held_out(denoiser, erasures, settings, "report")
    assert not any(torch.equal(a, b) for a in again.forget.noisy for b in asked.forget.noisy), "other noise"
    for unchanged in (
        look_again(denoiser, erasures, dataclasses.replace(settings, heldout=8), adapter, first),
        look_again(denoiser, erasures, dataclasses.replace(settings, failed_above=0.8), adapter, first),
        look_again(denoiser, erasures, dataclasses.replace(settings, failed_above=0.15), adapter, first),
    ):
        assert unchanged is first, "each was asked about often, none is left, or most are"


def test_generic_texts_are_asked_about_at_all_times_however_many_trajectories_there_are(denoiser: UNetDenoiser) -> None:
    """At the first state of each alone, pure noise, nothing would seem to drift."""
    kept = tuple(f"Kept {i}" for i in range(30))
    erasures = Erasures(dataclasses.replace(ERASURE, keep=kept))
    held_out = draw_held_out(denoiser, erasures, dataclasses.replace(SETTINGS, heldout=4, example_steps=8), "choose")
    named = [held_out.names[row] for row in held_out.retain.prompt.tolist()]
    times = [int(t) for t, name in zip(held_out.retain.timesteps, named, strict=True) if name == GENERIC]
    assert len(times) == 24
    assert min(times) < 0.25 * denoiser.num_timesteps
    assert sum(t < 0.5 * denoiser.num_timesteps for t in times) >= 8
