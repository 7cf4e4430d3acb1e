"""What the pipeline's tasks do, called directly: an interrupted training goes on, and what ended it is in MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from spare_core.adapters.manifest import LORA
from spare_core.method import distill
from spare_core.registry.client import connect, embedded_uri
from spare_core.workflow import tasks
from spare_core.workflow.environment import CHECKPOINTS, RUN_ID, STORE, open_run_store
from spare_core.workflow.order import Order
from spare_core.workflow.travelling import receive
from tests.workflow.test_order import GIVEN

SETTINGS = {
    "steps": 6, "lr": 1e-3, "measure_every": 2, "failed_above": 100.0,
    "examples": 4, "retain_examples": 4, "heldout": 3, "example_steps": 2,
    "batch_size": 2, "bins": 4, "rank": 2, "closed_form": False, "dtype": "float32",
}  # fmt: skip


class Prepared(NamedTuple):
    """A request whose first stages are done."""

    order: str
    folders: tuple[Path, Path, Path]
    root: Path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """In this process, with an MLflow of its own."""
    root = tmp_path_factory.mktemp("workflow")
    suite = {"extends": "canvas", "styles": ["Neon Lines", "Photo", "Rust"], "objects": ["Cat", "Dog"], "steps": 2}
    (root / "suite.yaml").write_text(yaml.safe_dump(suite))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", embedded_uri(root / "registry"))
        (root / "store").mkdir()
        patch.setenv(STORE, str(root / "store"))
        patch.setenv(CHECKPOINTS, str(root / "checkpoints"))
        patch.setenv(RUN_ID, "run-1")
        given = {**GIVEN, "settings": SETTINGS, "suite": str(root / "suite.yaml"), "keep": ["Rust"], "seeds": 1}
        order, _ = tasks.validate_task(given)
        examples, profile, masks = (root / name for name in ("examples", "profile", "masks"))
        tasks.prepare_task(order, examples)
        tasks.timesteps_task(order, examples, profile, root / "profile.html")
        tasks.saliency_task(order, examples, profile, masks)
        yield Prepared(order, (examples, profile, masks), root)


def stage_runs(stage: str) -> list[Any]:
    """MLflow's runs of a stage."""
    client = connect()
    (experiment,) = client.search_experiments(filter_string="name = 'spare'")
    return list(client.search_runs([experiment.experiment_id], f"tags.`spare.stage` = '{stage}'"))


def test_an_interrupted_training_goes_on_from_its_last_measurement(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when a pod is evicted and its task repeated; the adapter is that of an uninterrupted one."""
    step, done = distill.training_step, []

    def counting(*args: Any) -> tuple[float, float]:
        done.append(args[3])
        if args[3] == 5 and len(done) == 6:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(distill, "training_step", counting)
    with pytest.raises(KeyboardInterrupt):
        tasks.distill_task(prepared.order, *prepared.folders, tmp_path / "first")
    (run,) = stage_runs("distill")
    assert run.info.status == "KILLED"
    tasks.distill_task(prepared.order, *prepared.folders, tmp_path / "second")
    assert done == [0, 1, 2, 3, 4, 5, 4, 5]
    (run,) = stage_runs("distill")
    assert (run.info.status, run.data.tags["spare.attempt"]) == ("FINISHED", "2")
    monkeypatch.delenv(CHECKPOINTS)
    tasks.distill_task(prepared.order, *prepared.folders, tmp_path / "whole")
    assert (tmp_path / "second" / LORA).read_bytes() == (tmp_path / "whole" / LORA).read_bytes()
    assert list((prepared.root / "checkpoints").iterdir()) == [], "nothing is kept of what is finished"


def test_a_task_outside_a_pipeline_run_says_what_is_missing(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv(RUN_ID)
    with pytest.raises(SystemExit) as ended:
        tasks.prepare_task(prepared.order, tmp_path / "examples")
    assert ended.value.code == 2
    assert "SPARE_RUN_ID is not set; `spare run` sets it" in capsys.readouterr().err
    assert not (tmp_path / "examples").exists()


def test_a_run_without_a_place_for_its_evidence_is_refused_before_any_work(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(STORE)
    with pytest.raises(SystemExit):
        tasks.validate_task({**GIVEN, "name": "../../etc", "settings": {"seed": -1}})
    said = capsys.readouterr().err
    for part in (
        "SPARE_STORE is not set; set it to where evidence",
        "'../../etc' is no name of ours",
        "seed is -1",
    ):
        assert part in said


def test_a_profile_page_is_left_for_people(prepared: Prepared) -> None:
    assert "When Neon Lines is decided" in (prepared.root / "profile.html").read_text()
    (run,) = stage_runs("timesteps")
    assert "timesteps.html" in {item.path for item in connect().list_artifacts(run.info.run_id)}


def order_of(prepared: Prepared) -> Order:
    return Order.from_json(receive(open_run_store(), prepared.order))


def test_what_was_asked_is_in_mlflow(prepared: Prepared) -> None:
    run = next(run for run in stage_runs("validate") if run.info.status == "FINISHED")
    assert run.data.params["erase"] == "neon lines"
    assert run.data.tags["spare.concept"] == "Neon Lines"
    assert run.data.tags["spare.base.digest"] == order_of(prepared).request.base


def test_what_was_read_is_among_mlflows_inputs(prepared: Prepared) -> None:
    (run,) = stage_runs("prepare")
    (given,) = run.inputs.dataset_inputs
    request = order_of(prepared).request
    assert (given.dataset.name, given.dataset.digest) == ("examples", request.sha256[:36])
    counts = json.loads(given.dataset.profile)
    assert counts["forget"] == 4 * 2  # trajectories, of two states each
    assert counts.keys() == {
        "forget", "retain", "forget_choose", "retain_choose", "forget_report", "retain_report",
    }  # fmt: skip
