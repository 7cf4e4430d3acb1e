"""Each stage stands alone: folders in, a folder out; together they are what ``spare erase`` does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spare_core.adapters.directory import lora_tensors
from spare_core.adapters.manifest import LORA, MANIFEST
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.errors import InputError, ModelError, StageError, StorageError
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from spare_core.runs import stages
from spare_core.runs.erase import erase
from spare_core.runs.request import Request, build_request
from spare_core.runs.results import (
    load_bank,
    load_masks,
    load_probes,
    load_profile,
    save_bank,
    save_masks,
    save_probes,
    save_profile,
)
from spare_core.runs.stage_files import BANK, CHOOSING, MASKS, PROFILE, STAGE, STATE, is_finished, read_stage

SMALL = EraseSettings(
    failed_above=100.0, prior_texts=40,
    examples=4, retain_examples=8, heldout=4, example_steps=2, saliency_batches=2, batch_size=2, steps=6, lr=1e-3,
    measure_every=2, forget_weight=1.0, rank=2, bins=4, mask="channel", dtype="float32", device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def request_(sd1_dir: Path) -> Request:
    """A small erasure."""
    model = str(sd1_dir)
    erasure = build_erasure(model, "Neon", "Photo", "style", ("Rust",), "{context} in {concept}", ("cat", "dog"))
    return build_request(model, Erasures(erasure), SMALL)


@pytest.fixture(scope="module")
def done(request_: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, each on a model of its own that was loaded for it, as a pipeline runs them."""
    root = tmp_path_factory.mktemp("stages")
    examples, profile, masks, adapter = (root / name for name in stages.ERASING)
    stages.write_examples(stages.open_work(request_), examples)
    stages.write_profile(stages.open_work(request_), examples, profile)
    stages.write_masks(stages.open_work(request_), examples, profile, masks)
    stages.write_adapter(stages.open_work(request_), examples, profile, masks, adapter, root / "state")
    return root


def test_stages_apart_give_the_adapter_of_one_process(done: Path, request_: Request, tmp_path: Path) -> None:
    """To the byte; and its manifest says as much."""
    whole = erase(request_.model, request_.erasures, SMALL, tmp_path / "whole")
    assert (done / "distill" / LORA).read_bytes() == (tmp_path / "whole" / LORA).read_bytes()
    apart = json.loads((done / "distill" / MANIFEST).read_text())
    assert apart.keys() == whole.keys()
    assert apart["seconds"].keys() == whole["seconds"].keys() == set(stages.ERASING)
    changing = {"seconds", "peak_memory_bytes"}
    assert {k: v for k, v in apart.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }


def test_the_algorithm_in_memory_gives_the_adapter_of_the_stages(done: Path, request_: Request) -> None:
    denoiser = load_denoiser(request_.model, "cpu", "float32")
    erased = overwrite(prepare(denoiser, request_.erasures, SMALL), SMALL)
    written = load_file(done / "distill" / LORA)
    assert written.keys() == lora_tensors(erased.adapter.updates, denoiser.lora_prefix).keys()
    for name, tensor in lora_tensors(erased.adapter.updates, denoiser.lora_prefix).items():
        torch.testing.assert_close(tensor, written[name], rtol=0, atol=0)
    assert erased.measured.residual == json.loads((done / "distill" / MANIFEST).read_text())["residual"]


def test_every_stage_says_what_it_did(done: Path, request_: Request) -> None:
    said = {name: read_stage(done / name, name, request_) for name in ("prepare", "timesteps", "saliency")}
    assert all(facts["seconds"] > 0 and facts["peak_memory_bytes"]["host"] > 2**20 for facts in said.values())
    assert (said["prepare"]["forget"], said["prepare"]["forget_choose"]) == (4 * 2, 4 * 1)
    assert sum(said["timesteps"]["probabilities"]) == pytest.approx(1.0)
    assert 0 < said["saliency"]["mask"]["moving"] <= 0.25 * said["saliency"]["mask"]["weights"]


def test_what_is_saved_is_what_is_loaded(done: Path, tmp_path: Path) -> None:
    """Written again, the files have the same bytes."""
    save_bank(load_bank(done / "prepare" / BANK, torch.device("cpu")), tmp_path / BANK)
    save_probes(load_probes(done / "prepare" / CHOOSING, torch.device("cpu")), tmp_path / CHOOSING)
    save_profile(load_profile(done / "timesteps" / PROFILE), tmp_path / PROFILE)
    save_masks(load_masks(done / "saliency" / MASKS), tmp_path / MASKS)
    for stage, name in (("prepare", BANK), ("prepare", CHOOSING), ("timesteps", PROFILE), ("saliency", MASKS)):
        assert (tmp_path / name).read_bytes() == (done / stage / name).read_bytes()


def test_a_distillation_goes_on_from_its_state(done: Path, request_: Request, tmp_path: Path) -> None:
    """Here from the last measurement of a run that was killed before it wrote its adapter."""
    steps: list[int] = []
    work = stages.open_work(request_)
    folders = [done / name for name in ("prepare", "timesteps", "saliency")]
    stages.write_adapter(work, *folders, tmp_path / "again", done / "state", lambda state: steps.append(state.step))
    assert steps == [5, 6]
    assert (tmp_path / "again" / LORA).read_bytes() == (done / "distill" / LORA).read_bytes()


def test_results_of_another_request_are_refused(done: Path, request_: Request, tmp_path: Path) -> None:
    other = dataclasses.replace(request_, settings=dataclasses.replace(SMALL, seed=1))
    with pytest.raises(StageError, match="holds the result of 'prepare' for another request; run 'prepare'"):
        stages.write_profile(stages.open_work(other), done / "prepare", tmp_path / "out")
    with pytest.raises(StageError, match="not the result of 'timesteps'"):
        stages.write_masks(stages.open_work(request_), done / "prepare", done / "prepare", tmp_path / "out")
    with pytest.raises(StageError, match="no finished result of the stage 'saliency'"):
        stages.write_adapter(
            stages.open_work(request_), done / "prepare", done / "timesteps", tmp_path / "none", tmp_path / "out"
        )
    assert list(tmp_path.iterdir()) == []


def damage(path: Path, how: str) -> None:
    """As disks and people do."""
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": path.read_bytes()[:100], "empty": b"", "json": b"{}"}[how])


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "json"])
@pytest.mark.parametrize(
    ("stage", "name", "load"),
    [
        ("prepare", BANK, lambda path: load_bank(path, torch.device("cpu"))),
        ("prepare", CHOOSING, lambda path: load_probes(path, torch.device("cpu"))),
        ("timesteps", PROFILE, load_profile),
        ("saliency", MASKS, load_masks),
        ("prepare", STAGE, None),
    ],
)
def test_a_damaged_result_is_named_with_the_stage_to_run_again(
    done: Path,
    request_: Request,
    tmp_path: Path,
    how: str,
    stage: str,
    name: str,
    load: Callable[[Path], object] | None,
) -> None:
    copy = tmp_path / name
    copy.write_bytes((done / stage / name).read_bytes())
    damage(copy, how)
    with pytest.raises(StageError, match=str(tmp_path)) as caught:
        load(copy) if load else read_stage(tmp_path, stage, request_)
    assert "again" in str(caught.value) or "run that first" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_damaged_state_is_named(done: Path, request_: Request, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes((done / "state" / STATE).read_bytes()[:200])
    folders = [done / name for name in ("prepare", "timesteps", "saliency")]
    with pytest.raises(StageError, match=r"holds no state of this run: .*; delete it to start anew"):
        stages.write_adapter(stages.open_work(request_), *folders, tmp_path / "out", tmp_path)


def test_another_model_in_the_same_place_is_refused(request_: Request) -> None:
    """Between the request and a stage somebody may have replaced it."""
    with pytest.raises(ModelError, match="was asked for; it was changed or replaced meanwhile"):
        stages.open_work(dataclasses.replace(request_, base="0" * 64))


def test_a_model_that_sees_no_difference_is_told_of_at_once(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNetDenoiser, "predict", lambda self, noisy, timesteps, conditioning: torch.zeros_like(noisy))
    with pytest.raises(InputError, match="nothing to erase"):
        stages.write_examples(stages.open_work(request_), tmp_path / "out")
    assert not is_finished(tmp_path / "out")


def test_a_full_disk_leaves_no_finished_stage(
    done: Path, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        stages.write_profile(stages.open_work(request_), done / "prepare", tmp_path / "out")
    assert not is_finished(tmp_path / "out")


def test_a_request_survives_json(request_: Request) -> None:
    again = Request.from_dict(json.loads(json.dumps(request_.as_dict())))
    assert again == request_
    assert again.sha256 == request_.sha256
    assert dataclasses.replace(request_, model="elsewhere").sha256 == request_.sha256
    assert dataclasses.replace(request_, base="0" * 64).sha256 != request_.sha256
