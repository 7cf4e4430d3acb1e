"""An erasure is repeatable, can be killed and resumed, and refuses bad input before it touches anything."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spare_core.adapters.manifest import LORA, MANIFEST, SPARSE
from spare_core.adapters.verify import verify_adapter
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.errors import (
    ConceptError,
    ImagesError,
    InputError,
    ModelError,
    OutputError,
    SettingsError,
    StorageError,
    TrainingError,
)
from spare_core.method import distill
from spare_core.method.residual import Measurement
from spare_core.method.settings import EraseSettings
from spare_core.runs.erase import erase
from spare_core.runs.stages import check_erased
from tests.support import forking

SMALL = EraseSettings(
    failed_above=100.0, prior_texts=40, examples=4,
    retain_examples=8, heldout=4, example_steps=2, batch_size=2, steps=6, lr=1e-3,
    measure_every=2, forget_weight=1.0, rank=2, bins=4, dtype="float32", device="cpu",
)  # fmt: skip


UNSOLVED = {"closed_form": False, "prior_texts": 2000}
WAYS: dict[str, dict[str, Any]] = {
    "solved": {"lr": 1e-3}, "searching": {"lr": "auto", **UNSOLVED}, "opposed": {"lr": 1e-3, "adversary": "vectors"},
}  # fmt: skip
"""A run from the solution; one that must find its rate, since from the solution of a tiny model no rate is any good;
and one against an adversary, who is not kept."""


def requested(model: Path, **changes: object) -> dict[str, object]:
    """Arguments of :func:`erase` for a small erasure."""
    erasure = build_erasure(str(model), "Neon", "Photo", "style", ("Rust",), "{context} in {concept}", ("cat", "dog"))
    return {"model": str(model), "erasures": Erasures(erasure), "settings": dataclasses.replace(SMALL, **changes)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"closed_form": False, "prior_texts": 2000, "steps": 1, "lr": 1e-6},
            r"1 of 1 concepts are not erased, .* 'Neon' \((0\.9|1\.0)",
        ),
        (
            {
                "closed_form": False,
                "prior_texts": 2000,
                "steps": 20,
                "lr": 0.3,
                "rank": 8,
                "mask": "none",
                "measure_every": 20,
            },
            "not erased|ruins",
        ),
    ],
)
def test_an_erasure_that_failed_is_an_error_and_leaves_no_adapter(
    sd1_dir: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """Also one that a far too high rate has blown up."""
    with pytest.raises(TrainingError, match=message):
        erase(**requested(sd1_dir, failed_above=0.5, **changes), output=tmp_path / "out")
    assert not (tmp_path / "out" / "spare.json").exists()
    assert not (tmp_path / "out" / LORA).exists()


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (Measurement({"a": 0.1, "b": 0.7, "c": 0.9}, {"k": 0.0}), r"2 of 3 concepts .*'c' \(0\.90\), 'b' \(0\.70\)"),
        (Measurement({"a": 0.1}, {"k": 0.6}), r"mean drift 0\.60, above 0\.5"),
        (Measurement({"a": 0.1}, {"k": 0.1}, 0.7), r"mean drift 0\.70, above 0\.5"),
    ],
)
def test_what_is_left_or_ruined_is_named(measured: Measurement, message: str) -> None:
    check_erased(Measurement({"a": 0.5}, {"k": 0.5}, 0.5), EraseSettings())
    with pytest.raises(TrainingError, match=message):
        check_erased(measured, EraseSettings())


def test_of_a_long_list_one_name_in_twenty_may_be_left_and_is_told() -> None:
    def measured(left: int, count: int, others: float = 0.1) -> Measurement:
        return Measurement({f"n{i}": 0.6 if i < left else others for i in range(count)}, {"k": 0.0})

    check_erased(measured(5, 100), EraseSettings())
    assert [*measured(2, 40).left(EraseSettings().failed_above)] == ["n0", "n1"]
    for too_many in (measured(6, 100), measured(1, 19), measured(0, 100, 0.51)):
        with pytest.raises(TrainingError, match="not erased"):
            check_erased(too_many, EraseSettings())


def test_the_same_seed_gives_the_same_adapter_bytes(sd1_dir: Path, tmp_path: Path) -> None:
    """And another seed gives others."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        erase(**requested(sd1_dir, seed=seed), output=tmp_path / name)
    first, again, other = ((tmp_path / name / LORA).read_bytes() for name in "abc")
    assert first == again
    assert first != other


@pytest.fixture(scope="module", params=WAYS)
def uninterrupted(request: pytest.FixtureRequest, sd1_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Way, folder and manifest of a run from beginning to end."""
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    return request.param, folder, erase(**requested(sd1_dir, **WAYS[request.param]), output=folder)


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_a_run_stopped_at_any_step_resumes_to_the_same_result(
    sd1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any, stop_at: int
) -> None:
    """The checkpoint is gone afterwards, and losses and measurements are those of an uninterrupted run."""
    way, folder, whole = uninterrupted
    step = distill.training_step

    def dying(*args: object) -> tuple[float, float]:
        if args[3] == stop_at:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(distill, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        erase(**requested(sd1_dir, **WAYS[way]), output=tmp_path / "stopped")
    assert not (tmp_path / "stopped" / MANIFEST).exists()
    monkeypatch.setattr(distill, "training_step", step)
    resumed = erase(**requested(sd1_dir, **WAYS[way]), output=tmp_path / "stopped")
    assert (tmp_path / "stopped" / LORA).read_bytes() == (folder / LORA).read_bytes()
    assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == [LORA, MANIFEST]
    for name in ("residual", "drift", "training"):
        assert resumed[name] == whole[name]


def test_a_killed_process_resumes_with_the_same_command(sd1_dir: Path, tmp_path: Path) -> None:
    """SIGKILL, in the middle of training."""
    settings = {**dataclasses.asdict(SMALL), "steps": 30}
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    command = [
        sys.executable, "-m", "spare_core.cli", "erase", str(sd1_dir), "--erase", "Neon", "--surrogate", "Photo",
        "--kind", "style", "--config", str(tmp_path / "settings.yaml"), "--output",
    ]  # fmt: skip
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = forking.popen([*command, str(killed)])
    state = killed / ".checkpoint" / "distill" / "state.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert forking.run([*command, str(killed)]).returncode == 0
    erasure = build_erasure(str(sd1_dir), "Neon", "Photo", "style")
    erase(str(sd1_dir), Erasures(erasure), EraseSettings.from_mapping(settings), whole)
    assert (killed / LORA).read_bytes() == (whole / LORA).read_bytes()


def test_a_finished_erasure_is_returned_not_repeated(sd1_dir: Path, tmp_path: Path) -> None:
    """And other settings do not overwrite it."""
    first = erase(**requested(sd1_dir), output=tmp_path / "out")
    written = (tmp_path / "out" / LORA).stat().st_mtime_ns
    assert erase(**requested(sd1_dir), output=tmp_path / "out") == first
    assert (tmp_path / "out" / LORA).stat().st_mtime_ns == written
    with pytest.raises(OutputError, match="rank 2 there, 3 now"):
        erase(**requested(sd1_dir, rank=3), output=tmp_path / "out")


@pytest.mark.parametrize("mask", ["module", "channel", "weight", "none"])
def test_every_mask_erases_and_only_moves_what_it_allows(sd1_dir: Path, tmp_path: Path, mask: str) -> None:
    """The finished adapter verifies against its base, under stock diffusers too."""
    manifest = erase(**requested(sd1_dir, mask=mask, steps=12, lr=0.01), output=tmp_path / "out")
    assert (tmp_path / "out" / (SPARSE if mask == "weight" else LORA)).exists()
    assert manifest["residual"] < 1.0
    if mask != "none":
        assert manifest["mask"]["density"] <= EraseSettings().density + 1e-3
    report = verify_adapter(tmp_path / "out", str(sd1_dir))
    assert report["reversible"] is True
    assert report.get("diffusers_difference", 0.0) <= 1e-5


@pytest.mark.parametrize("which", ["sd2_dir", "sdxl_dir"])
def test_v_prediction_and_sdxl_models_are_erased_below_half_the_residual(
    which: str, tmp_path: Path, request_fixture: pytest.FixtureRequest
) -> None:
    """The adapter then loads in the stock pipeline class with the same predictions."""
    model: Path = request_fixture.getfixturevalue(which)
    settings = {
        "steps": 40,
        "failed_above": 100.0,
        "measure_every": 20,
        "lr": 0.02,
        "rank": 4,
        "alpha": 8.0,
        "mask": "none",
    }
    manifest = erase(**requested(model, **settings), output=tmp_path / "out")
    assert manifest["residual"] < 0.5
    assert verify_adapter(tmp_path / "out", str(model))["diffusers_difference"] <= 1e-5


@pytest.fixture
def request_fixture(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    """pytest's own ``request``, whose name this file uses for something else."""
    return request


def test_a_start_that_is_good_enough_is_the_result(sd1_dir: Path, tmp_path: Path) -> None:
    """No step is made, and the adapter that was solved for works like any other."""
    manifest = erase(**requested(sd1_dir, enough_residual=1.0, enough_drift=1.0), output=tmp_path / "out")
    training = manifest["training"]
    assert (training["steps"], training["stopped_early"], training["lr"], training["trials"]) == (0, True, 0.0, [])
    assert training["closed_form"]["ridge"] > 0
    assert manifest["residual"] < 1.0
    assert verify_adapter(tmp_path / "out", str(sd1_dir))["diffusers_difference"] <= 1e-5


def test_what_training_began_with_is_in_the_manifest(sd1_dir: Path, tmp_path: Path) -> None:
    found = erase(**requested(sd1_dir, lr="auto", **UNSOLVED), output=tmp_path / "found")["training"]
    assert found["lr"] in [trial["lr"] for trial in found["trials"]]
    assert found["closed_form"] is None
    given = erase(**requested(sd1_dir, lr=1e-3), output=tmp_path / "given")["training"]
    assert (given["lr"], given["trials"]) == (1e-3, [])
    assert 0 < given["closed_form"]["residual"] < 1
    assert given["steps"] == found["steps"] == SMALL.steps


def test_low_memory_mode_erases_alike(sd1_dir: Path, tmp_path: Path) -> None:
    """Checkpointed gradients and two backward passes change rounding, not the result."""
    plain = erase(**requested(sd1_dir), output=tmp_path / "plain")
    saving = erase(**requested(sd1_dir, low_memory=True), output=tmp_path / "saving")
    assert saving["residual"] == pytest.approx(plain["residual"], rel=1e-3)


def test_real_pictures_take_the_place_of_drawn_ones(sd1_dir: Path, tmp_path: Path) -> None:
    """Another folder of pictures gives another adapter."""
    outputs = []
    for name, colour in (("a", (200, 30, 30)), ("b", (20, 40, 220))):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (40, 56), colour).save(folder / "one.png")
        erase(**requested(sd1_dir, closed_form=False, prior_texts=2000), images=folder, output=tmp_path / f"out-{name}")
        outputs.append((tmp_path / f"out-{name}" / LORA).read_bytes())
    assert outputs[0] != outputs[1]


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_settings(
    sd1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight of the adapter that overflowed is found in the very next loss."""
    step = distill.training_step

    def overflowing(*args: object) -> tuple[float, float]:
        if args[3] == 3:
            args[2].parameters()[0].data.fill_(float("inf"))  # type: ignore[attr-defined]
        return step(*args)

    monkeypatch.setattr(distill, "training_step", overflowing)
    with pytest.raises(TrainingError, match=r"step 3: forget loss nan.* lr .* dtype float32, rank 2, timesteps \["):
        erase(**requested(sd1_dir), output=tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_full_disk_leaves_nothing_behind(sd1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC at the first file that is synced."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        erase(**requested(sd1_dir), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert caught.value.exit_code == 2


def _unreadable(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return folder


BAD_SETTINGS = [
    ({"density": 0.0}, "density is 0.0"),
    ({"density": 1.5}, "density is 1.5"),
    ({"density": float("nan")}, "density is nan"),
    ({"rank": 0}, "rank is 0"),
    ({"mask": "rows"}, "mask is 'rows'; allowed: text, module"),
    ({"steps": 0, "lr": -1.0}, "steps is 0.*lr is -1"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS)
def test_settings_out_of_range_are_named(changes: dict[str, object], message: str) -> None:
    """All of them at once."""
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_bad_input_is_refused_before_any_work(sd1_dir: Path, tmp_path: Path) -> None:
    """Each with its own error, and no output folder is made."""
    output = tmp_path / "out"
    good = requested(sd1_dir)
    plain = tmp_path / "plain"
    plain.mkdir()
    ours_not = tmp_path / "taken"
    ours_not.mkdir()
    (ours_not / "thesis.txt").write_text("precious")
    long = "very " * 55 + "long"
    cases: list[tuple[type[InputError], str, dict[str, object]]] = [
        (ModelError, "there is no model", {"model": str(tmp_path / "nowhere")}),
        (ModelError, "no model_index.json", {"model": str(plain)}),
        (SettingsError, "rank is 900, but layer", requested(sd1_dir, rank=900)),
        (ImagesError, "torn.png", {"images": _unreadable(tmp_path)}),
        (ImagesError, "is not a folder", {"images": tmp_path / "none"}),
        (OutputError, "is not ours", {"output": ours_not}),
        (ConceptError, "tokens long", {"erasures": Erasures(build_erasure(str(sd1_dir), long, "Photo", "style"))}),
    ]
    for error, message, change in cases:
        with pytest.raises(error, match=message):
            erase(**{**good, "output": output, **change})
        assert not output.exists()
    assert [file.name for file in ours_not.iterdir()] == ["thesis.txt"]


def test_two_processes_cannot_work_in_one_folder(sd1_dir: Path, tmp_path: Path) -> None:
    """The second is told so, and the first's checkpoint stays."""
    import fcntl

    from spare_core.runs.resume import Checkpoint

    request_ = {"concept": "x"}
    checkpoint = Checkpoint(tmp_path / "out", request_)
    with pytest.raises(OutputError, match="another process"):
        Checkpoint(tmp_path / "out", request_)
    assert (tmp_path / "out" / ".checkpoint" / "request.json").exists()
    fcntl.flock(checkpoint._lock, fcntl.LOCK_UN)


def test_erasing_leaves_no_gradient_and_no_hook_on_the_model(sd1_dir: Path, tmp_path: Path) -> None:
    """The saliency borrows the weights' gradients and gives them back."""
    from spare_core.method.bank import fill_bank
    from spare_core.method.gap import profile_timesteps
    from spare_core.method.saliency import score_layers
    from spare_core.models.loading import load_denoiser

    denoiser = load_denoiser(str(sd1_dir), "cpu", "float32")
    before = {name: value.clone() for name, value in denoiser.weights.state_dict().items()}
    asked = requested(sd1_dir)
    bank = fill_bank(denoiser, asked["erasures"], asked["settings"])
    profile = profile_timesteps(bank, denoiser.num_timesteps, asked["settings"].bins)
    scores = score_layers(denoiser, bank, profile, dataclasses.replace(asked["settings"], mask="channel"))
    assert all(bool(torch.isfinite(part).all()) for score in scores.values() for part in score.parts)
    assert all(not p.requires_grad and p.grad is None for p in denoiser.weights.parameters())
    assert all(torch.equal(before[name], value) for name, value in denoiser.weights.state_dict().items())
