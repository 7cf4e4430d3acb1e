"""The bundle's pipeline really runs here: it grows from the champion, shrinks, and two at once lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.definition import BUNDLE
from spare_core.workflow import tasks
from spare_core.workflow.environment import RUN_ID, STORE
from tests.support.workplaces import SETTINGS, Workplace

pytest_plugins = ("tests.support.attack_fixtures",)
STAGES = ("collect", "compose", "evaluate", "register", "gate", "promote")
NEON, CAT = {"concept": "neon lines", "surrogate": "Photo"}, {"concept": "Cat", "surrogate": "Dog"}


def run(place: Workplace, *more: str, **environment: str) -> dict[str, Any]:
    """``spare run`` with what it prints."""
    done = place.run(*more, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def report(done: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of a run."""
    return json.loads((Path(done["results"]["register"]["evaluation"]) / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A bundle of a style and an object is champion."""
    place = Workplace(tmp_path_factory.mktemp("bundle"))
    place.pipeline = BUNDLE
    settings = {name: value for name, value in SETTINGS.items() if name not in ("mask", "saliency_batches")}
    place.settings = settings
    place.arguments = ["model=canvas", f"settings={json.dumps(settings)}", "suite=suite.yaml", "seeds=1"]
    place.first = run(place, f"requests={json.dumps([NEON, CAT])}")
    return place


def test_a_first_list_becomes_a_bundle(place: Workplace) -> None:
    assert tuple(place.first["results"]) == (*STAGES, "finish")
    assert place.first["results"]["register"]["name"] == "spare.canvas"
    found = report(place.first)
    assert (found["erased"], found["kinds"]) == (["Neon Lines", "Cat"], ["style", "object"])
    assert [row["added"] for row in found["history"]] == [["Neon Lines", "Cat"]]
    (version,) = place.client().search_model_versions("name = 'spare.canvas'")
    assert version.tags["spare.concept"] == "Neon Lines, Cat"


def test_it_grows_from_the_champion_and_shrinks(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_attacks: None
) -> None:
    """What the same tasks do, here in one process: the evaluation goes on from the one before, and names what is left
    of what was there. A bundle that was collected before that is not promoted any more."""
    for name, value in (("MLFLOW_TRACKING_URI", place.tracking), (STORE, place.output / "store"), (RUN_ID, "second")):
        monkeypatch.setenv(name, str(value))
    parameters = {
        "model": "canvas", "requests": [{"concept": "Rust", "surrogate": "Photo"}], "without": ["cat"], "grow": True,
        "settings": place.settings, "suite": str(place.folder / "suite.yaml"), "seeds": 1, "name": "", "promote": True,
        "policy": str(place.folder / "lenient.yaml"), "request_id": "",
    }  # fmt: skip
    order, policy = tasks.collect_task(parameters)
    adapter, evaluation = tmp_path / "adapter", tmp_path / "evaluation"
    tasks.compose_task(order, adapter)
    found = tasks.evaluate_task(order, adapter, evaluation, tmp_path / "page.html")
    assert found["erased"] == ["Neon Lines", "Rust"]
    assert [(row["added"], row["withdrawn"]) for row in found["history"]][1:] == [(["Rust"], ["Cat"])]
    after = "adding Rust and withdrawing Cat"
    assert [(one["concept"], one["after"]) for one in found["rebounds"]] == [("Neon Lines", after)]
    check_attacked(parameters, adapter, tmp_path)
    version = tasks.register_task(order, "", adapter, evaluation)
    assert version == ("spare.canvas", 2)
    tasks.gate_task(order, policy, *version)
    assert tasks.promote_task(order, policy, *version) == {"champion": 2, "previous": 1}
    with pytest.raises(SystemExit):
        tasks.promote_task(order, policy, "spare.canvas", 1)


def check_attacked(parameters: dict[str, Any], adapter: Path, folder: Path) -> None:
    """Under a policy that has a rule for it, a bundle's evaluation attacks each of its concepts."""
    policy = yaml.safe_load(Path(parameters["policy"]).read_text()) | {"max_attack_success": {"conditioning": 1.0}}
    (folder / "attacked.yaml").write_text(yaml.safe_dump(policy))
    order, _ = tasks.collect_task({**parameters, "policy": str(folder / "attacked.yaml")})
    found = tasks.evaluate_task(order, adapter, folder / "attacked", folder / "attacked.html")
    assert {name: [*one] for name, one in found["attacks"]["concepts"].items()} == {
        "Neon Lines": ["conditioning"], "Rust": ["conditioning"],
    }  # fmt: skip
    assert {"attack/conditioning/base", "attack/conditioning/adapted"} <= {*tasks.figures(found)}
    assert "attacks (quick)" in (folder / "attacked.html").read_text()


def test_what_is_wrong_is_told_before_any_work(place: Workplace) -> None:
    done = place.run("requests=[{concept: Rust}]", "without=Cat", policy="none")
    assert done.returncode == 2
    for part in ("surrogate is missing", "without is 'Cat'; it must be a list of texts", "none.yaml"):
        assert part in done.stderr
    assert "compose" not in done.stderr
