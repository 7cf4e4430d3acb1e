"""``spare takedown run`` really runs the committed pipeline here: from a list to the champion, each request once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.store import open_store
from spare_core.takedown.ledger import Ledger
from tests.support.workplaces import SETTINGS, Workplace, wait_until
from tests.takedown.test_lists import row
from tests.takedown.test_work import history

BUNDLING = ("compose", "evaluate", "register", "gate", "promote")
LIST = [
    row(request_id="T-1", surrogate="auto", kind=None),
    row(request_id="T-2", concept="Cat", surrogate="Dog", kind=None),
    row(request_id="T-3", concept="cat", surrogate="dog", kind=None),
    row(request_id="T-4", concept="Unicorn", surrogate="Dog", kind="object"),
    row(request_id="T-5", concept="Rust", legal_hold=True, kind=None),
    row(request_id="T-6", regime="hearsay"),
]
NOTICE = [row(request_id="C-2", concept="", surrogate="auto", kind=None, counter_notice_of="T-2"),
          row(request_id="C-3", concept="", surrogate="auto", kind=None, counter_notice_of="T-3")]  # fmt: skip
FINAL = {"T-1": "done", "T-2": "done", "T-3": "done", "T-4": "failed", "T-5": "blocked"}


class Desk(Workplace):
    """A workplace with takedown lists."""

    def take_down(self, rows: list[dict[str, Any]], *more: str) -> subprocess.CompletedProcess[str]:
        """``spare takedown run`` of a list."""
        (self.folder / "list.yaml").write_text(yaml.safe_dump(rows))
        self.command = ["takedown", "run", "list.yaml" if rows else ""]
        return self.run("skip_invalid=true", *more)

    @property
    def ledger(self) -> Ledger:
        return Ledger(open_store(str(self.output / "store")), "reader")


def states(done: dict[str, Any]) -> dict[str, str]:
    return {one["request_id"]: one["state"] for one in done["requests"]}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Killed in the middle of the first request, then run again at once."""
    desk = Desk(tmp_path_factory.mktemp("takedown"))
    settings = {name: value for name, value in SETTINGS.items() if name not in ("mask", "saliency_batches")}
    given = json.dumps(settings)
    bundled = json.dumps({**settings, "rank": 4})
    desk.arguments = [f"settings={given}", f"bundle_settings={bundled}", "suite=suite.yaml", "seeds=1"]
    (desk.folder / "list.yaml").write_text(yaml.safe_dump(LIST))
    desk.command = ["takedown", "run", "list.yaml", "skip_invalid=true"]
    killed = desk.start()
    wait_until(lambda: desk.ledger.standing("T-1").state == "erasing", "T-1 is being erased", killed)
    killed.kill()
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert desk.ledger.standing("T-1").state == "erasing"
    done = desk.take_down(LIST)
    assert done.returncode == 1, "one request failed: a monitor hears of it\n" + done.stderr
    desk.first = json.loads(done.stdout)
    return desk


def test_every_request_comes_to_its_end_and_the_bundle_is_champion(desk: Desk) -> None:
    assert states(desk.first) == FINAL
    assert tuple(desk.first["results"]) == (
        "plan", "take down T-1", "take down T-2", "gather", *BUNDLING, "close"
    )  # fmt: skip
    (left_out,) = desk.first["results"]["plan"]["left_out"]
    assert "list.yaml:" in left_out
    assert "regime" in left_out
    (version,) = desk.client().search_model_versions("name = 'spare.canvas'")
    assert version.tags["spare.concept"] == "Neon Lines, Cat"
    assert desk.client().get_model_version_by_alias("spare.canvas", "champion").version == version.version


def test_each_request_has_its_evidence(desk: Desk) -> None:
    standing = desk.ledger.standing("T-1")
    store = open_store(str(desk.output / "store"))
    assert [state for state, _ in groupby(history(store, "T-1"))] == [
        "received", "planned", "erasing", "planned", "erasing", "evaluated", "registered", "in_bundle", "done"
    ]  # fmt: skip
    facts = standing.facts
    nearest = min(facts["distances"], key=facts["distances"].get)
    assert facts["row"]["surrogate"] == nearest, "of what the suite's model lies next to it"
    assert len(facts["distances"]) == 10, "all other styles but Rust, which may have to go too"
    evidence = json.loads(store.read(f"evidence/{facts['evidence_sha256']}.json"))
    assert (evidence["request_id"], evidence["erased"]) == ("T-1", {"Neon Lines": nearest})
    assert evidence["adapter_sha256"] == facts["adapter_sha256"]
    assert facts["name"] == "spare.canvas.neon-lines"
    ended: dict[str, set[str]] = {}
    for run in desk.client().search_runs(["1"], "tags.`spare.request_id` = 'T-1'"):
        ended.setdefault(run.data.tags.get("spare.stage", "request"), set()).add(run.info.status)
    assert {*ended} == {"request", "neighbours", "erase", "evaluate", "register"}
    for stage, statuses in ended.items():  # where the kill hit, there is a killed one beside it
        assert "FINISHED" in statuses <= {"FINISHED", "KILLED"}, stage
    assert "Canvas has no object 'Unicorn'" in desk.ledger.standing("T-4").facts["reason"]
    assert "case-1" not in json.dumps(evidence), "who asked is nobody's business"


def test_an_entry_cut_off_at_the_end_is_missed_by_mlflow(desk: Desk, tmp_path: Path) -> None:
    """The chain of what is left holds, so nothing else would show it."""
    shutil.copytree(desk.output / "store", tmp_path / "store")
    command = ["takedown", "status", "--store", str(tmp_path / "store")]
    environment = {"MLFLOW_TRACKING_URI": desk.tracking}
    number = desk.ledger.number
    whole = CliRunner().invoke(app, command, env=environment)
    assert f"entry {number}, which MLflow remembers, is there as it was" in whole.stdout
    (last,) = (tmp_path / "store" / "ledger").rglob(f"{number:08d}.json")
    last.unlink()
    assert CliRunner().invoke(app, command, env={"MLFLOW_TRACKING_URI": ""}).stdout.count("entries in order") == 1
    cut = CliRunner().invoke(app, command, env=environment)
    assert cut.exit_code == 1
    assert f"entry {number} of the ledger was " in cut.stderr


def test_the_same_list_again_does_nothing_twice(desk: Desk) -> None:
    before = desk.ledger.number
    done = json.loads(desk.take_down(LIST).stdout)
    assert states(done) == FINAL
    assert tuple(done["results"]) == ("plan", "gather", "close")
    assert desk.ledger.number == before


def test_what_is_withdrawn_leaves_the_bundle_when_nobody_else_asks_for_it(desk: Desk) -> None:
    done = json.loads(desk.take_down(NOTICE).stdout)
    assert states(done) == {**FINAL, "T-2": "withdrawn", "T-3": "withdrawn", "C-2": "done", "C-3": "done"}
    champion = desk.client().get_model_version_by_alias("spare.canvas", "champion")
    assert champion.tags["spare.concept"] == "Neon Lines"
    assert not any(name.startswith("take down") for name in done["results"])
    assert Path(done["results"]["register"]["evaluation"], "evaluation.json").is_file()


def test_bad_parameters_are_all_told_before_anything_is_entered(desk: Desk) -> None:
    before = desk.ledger.number
    done = desk.take_down([], "most=-1", "lease_minutes=0", "candidates={animal: [Dog]}")
    assert done.returncode == 2
    for problem in ("most is -1", "lease_minutes is 0", "candidates has 'animal'"):
        assert problem in done.stderr
    assert desk.ledger.number == before


def test_the_last_request_cannot_leave_the_bundle_by_itself(desk: Desk) -> None:
    done = desk.take_down([row(request_id="C-1", concept="", surrogate="auto", kind=None, counter_notice_of="T-1")])
    assert done.returncode == 2
    assert "gather: the last request was withdrawn" in done.stderr
    assert (desk.ledger.standing("T-1").state, desk.ledger.standing("C-1").state) == ("withdrawn", "planned")
