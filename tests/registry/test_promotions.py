"""Champion and previous: only past the gate, one at a time, every move logged, whatever is killed in between."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from spare_core.errors import GateRefused, LogDamaged, PromotionConflict, RegistryError, RegistryInputError
from spare_core.evaluation.gate import Policy
from spare_core.models.unet import UNetDenoiser
from spare_core.registry import promotions
from spare_core.registry.client import connect
from spare_core.registry.log import Aliases, PromotionLog, made_champion
from spare_core.registry.models import RegisteredVersion, get_version
from spare_core.registry.naming import model_name
from spare_core.registry.promotions import Move, read_aliases, read_log
from spare_core.registry.views import history, list_models, show_model, verify
from spare_core.store import Store, open_store
from tests.support import forking
from tests.support.mlflow_servers import Server
from tests.support.registrations import register_one, write_adapter

pytest_plugins = ("tests.support.mlflow_fixtures",)
pytestmark = pytest.mark.usefixtures("server")


POLICY = Policy.from_file()


def promote(name: str, version: int, store: Store, actor: str, reason: str = "", force: bool = False) -> Move:
    """Under the default policy."""
    return promotions.promote(name, version, store, actor, POLICY, reason, force)


def rollback(name: str, store: Store, actor: str, reason: str = "", force: bool = False) -> Move:
    """Under the default policy."""
    return promotions.rollback(name, store, actor, POLICY, reason, force)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the evidence of the originals; read-only."""
    return tmp_path_factory.mktemp("originals") / "store"


@pytest.fixture
def store(originals: list[RegisteredVersion], evidence: Path, tmp_path: Path) -> Store:
    """A store of the test's own, with that evidence."""
    shutil.copytree(evidence, tmp_path / "store", dirs_exist_ok=True)
    return open_store(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def originals(
    evidence: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_s3_server: Server, denoiser: UNetDenoiser
) -> list[RegisteredVersion]:
    """Versions 1, 2 and 3 meet the policy, version 4 does not; read-only."""
    folder, store = tmp_path_factory.mktemp("originals"), open_store(str(evidence))
    with mlflow_s3_server.used():
        return [
            register_one(folder / str(n), denoiser, "Promotions", n, good=n != 4, judged=False, store=store)
            for n in (1, 2, 3, 4)
        ]


@pytest.fixture
def model(
    originals: list[RegisteredVersion], store: Store, client: MlflowClient, request: pytest.FixtureRequest
) -> str:
    """A registered model of this test's own, with the same four versions: registering them again costs seconds."""
    name = model_name("canvas", "", request.node.name)
    client.create_registered_model(name)
    for one in originals:
        client.create_model_version(
            name, f"models:/{one.model_id}", one.run_id, dict(one.tags), model_id=one.model_id, await_creation_for=0
        )
    return name


def kinds(store: Store, name: str) -> list[str]:
    return [entry.kind for entry in PromotionLog(store, name).read()]


def assert_in_order(name: str, store: Store, champion: int | None, previous: int | None) -> None:
    """The log is whole, nothing is unfinished, and MLflow's aliases are as it says."""
    found = history(name, store)
    assert (found["pending"], found["outside"]) == (None, None)
    assert read_aliases(connect(), name) == Aliases(champion, previous)


def test_what_was_made_from_an_older_champion_is_not_promoted(model: str, store: Store) -> None:
    """A bundle of two runs at once would take back what the other one has erased."""

    def instead_of(version: int, champion: int | None) -> Move:
        return promotions.promote(model, version, store, "anna", POLICY, instead_of=champion)

    assert promotions.champion_of(connect(), model) is None
    assert instead_of(1, None).moved
    assert instead_of(2, 1).moved
    for champion in (1, None):
        with pytest.raises(PromotionConflict, match=r"version 3 .* was champion; it is version 2 now"):
            instead_of(3, champion)
    assert not instead_of(2, 1).moved, "asked again, it is champion already"
    found = promotions.champion_of(connect(), model)
    assert found is not None and found.version == 2
    assert promotions.champion_of(connect(), "spare.nowhere") is None
    assert_in_order(model, store, 2, 1)


def test_the_first_promotion_makes_a_champion_that_loads_by_alias(model: str, store: Store) -> None:
    move = promote(model, 1, store, "anna")
    assert (move.moved, move.aliases, move.forced, move.notes) == (True, Aliases(1, None), False, ())
    picture = mlflow.pyfunc.load_model(f"models:/{model}@champion").predict(["x"], params={"num_inference_steps": 1})
    assert picture[0].startswith(b"\x89PNG")
    assert kinds(store, model) == ["promote", "finish"]
    assert_in_order(model, store, 1, None)


def test_the_old_champion_becomes_previous_and_rolling_back_changes_their_places(model: str, store: Store) -> None:
    for version in (1, 2, 3):
        promote(model, version, store, "anna")
    assert_in_order(model, store, 3, 2)
    assert rollback(model, store, "anna", "users complain").aliases == Aliases(2, 3)
    assert rollback(model, store, "anna").aliases == Aliases(3, 2)
    assert promote(model, 2, store, "anna").aliases == Aliases(2, 3)
    assert_in_order(model, store, 2, 3)
    assert kinds(store, model) == ["promote", "finish"] * 3 + ["rollback", "finish"] * 2 + ["promote", "finish"]


def test_what_is_champion_already_is_not_moved_and_not_logged(model: str, store: Store) -> None:
    promote(model, 1, store, "anna")
    move = promote(model, 1, store, "anna")
    assert not move.moved
    assert "version 1 is champion already" in move.notes
    assert len(kinds(store, model)) == 2


def test_the_gates_refusal_holds(model: str, store: Store, client: MlflowClient) -> None:
    with pytest.raises(GateRefused, match=r"the gate refuses it: UA, lower 95 % bound: 0; at least 0.75 is needed"):
        promote(model, 4, store, "anna")
    assert get_version(client, model, 4).tags["spare.gate"] == "refused"
    assert kinds(store, model) == []
    assert read_aliases(client, model) == Aliases()


def test_what_a_tag_says_opens_no_gate(model: str, store: Store, client: MlflowClient) -> None:
    """Anyone who may write to MLflow may set tags; what was measured lies in the store."""
    for tag, value in {"spare.gate": "passed", "spare.gate.policy": POLICY.sha256, "spare.ua.after": "1.0"}.items():
        client.set_model_version_tag(model, "4", tag, value)
    with pytest.raises(GateRefused):
        promote(model, 4, store, "anna")
    borrowed = get_version(client, model, 1).tags["spare.evidence"]
    client.set_model_version_tag(model, "4", "spare.evidence", borrowed)
    with pytest.raises(RegistryError, match=r"is 'spare.evidence/1' of the adapter .*, not of"):
        promote(model, 4, store, "anna")
    assert kinds(store, model) == []


def test_evidence_that_was_changed_or_is_elsewhere_opens_no_gate(model: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is this another --store than the one it was registered with"):
        promote(model, 1, open_store(str(tmp_path / "elsewhere")), "anna", "really", force=True)
    for file in (tmp_path / "store" / "artifacts").glob("*.json"):
        file.write_text(file.read_text().replace('"ua": 0.0', '"ua": 1.0'))
    with pytest.raises(RegistryError, match="is not what was stored there"):
        promote(model, 4, store, "anna")


def test_the_policy_that_holds_now_decides_not_the_one_it_passed_then(model: str, store: Store) -> None:
    assert promote(model, 1, store, "anna").moved
    stricter = dataclasses.replace(POLICY, min_ua=0.9)
    with pytest.raises(GateRefused, match=r"at least 0.9 is needed"):
        promotions.promote(model, 2, store, "anna", stricter)
    assert promotions.promote(model, 2, store, "anna", dataclasses.replace(POLICY, min_ua=0.8)).moved
    with pytest.raises(GateRefused, match=r"at least 0.9 is needed"):
        promotions.rollback(model, store, "anna", stricter)
    assert promotions.rollback(model, store, "anna", stricter, "2 draws noise", force=True).aliases == Aliases(1, 2)
    moves = [entry for entry in PromotionLog(store, model).read() if entry.is_move]
    assert [entry.policy_sha256 for entry in moves[::2]] == [POLICY.sha256, stricter.sha256]
    assert [entry.forced for entry in moves] == [False, False, True]
    assert verify(model, store)["documents"] == 3


def test_the_proof_names_a_verdict_that_was_changed(model: str, store: Store, tmp_path: Path) -> None:
    promote(model, 1, store, "anna")
    assert verify(model, store) == {"name": model, "entries": 2, "documents": 1,
                                    "head": PromotionLog(store, model).read()[-1].sha256}  # fmt: skip
    path = tmp_path / "store" / "evidence" / f"{PromotionLog(store, model).read()[0].verdict_sha256}.json"
    kept = path.read_text()
    path.write_text(kept.replace("0.839", "0.999"))
    with pytest.raises(RegistryError, match=f"{path.name} is not what was stored there"):
        verify(model, store)
    path.write_text(kept)
    connect().set_registered_model_alias(model, "champion", "4")
    with pytest.raises(LogDamaged, match="is whole, but the aliases were moved outside SPARE"):
        verify(model, store)


def test_force_needs_a_reason_and_marks_entry_and_version_for_ever(
    model: str, store: Store, client: MlflowClient
) -> None:
    with pytest.raises(RegistryInputError, match="needs a reason"):
        promote(model, 4, store, "anna", force=True)
    move = promote(model, 4, store, "anna", "court order 7/26", force=True)
    assert move.forced
    assert PromotionLog(store, model).read()[0].forced
    assert get_version(client, model, 4).tags["spare.forced.reason"] == "anna: court order 7/26"
    promote(model, 1, store, "anna")
    assert show_model(model)["versions"][0]["forced"] == "anna: court order 7/26"
    with pytest.raises(GateRefused):  # forced once is not forced for ever
        rollback(model, store, "anna")
    assert rollback(model, store, "bert", "court order 8/26", force=True).aliases == Aliases(4, 1)
    assert [entry.forced for entry in PromotionLog(store, model).read()] == [True, False, False, False, True, False]


def test_force_without_need_leaves_no_mark(model: str, store: Store, client: MlflowClient) -> None:
    assert not promote(model, 1, store, "anna", "in a hurry", force=True).forced
    assert "spare.forced" not in get_version(client, model, 1).tags


def test_not_even_force_makes_changed_files_champion(
    store: Store, client: MlflowClient, tmp_path: Path, denoiser: UNetDenoiser
) -> None:
    version = register_one(tmp_path / "own", denoiser, "To be changed", store=store)
    other = write_adapter(tmp_path / "other", denoiser, "Other", seed=99)
    client.log_model_artifacts(version.model_id, str(other.folder), "adapter_weights")
    with pytest.raises(RegistryError, match="someone changed its files"):
        promote(version.name, version.version, store, "anna", "must be", force=True)
    assert kinds(store, version.name) == []


def test_there_is_nothing_to_roll_back_to_before_the_second_promotion(model: str, store: Store) -> None:
    for versions in ((), (1,)):
        for version in versions:
            promote(model, version, store, "anna")
        with pytest.raises(RegistryInputError, match="no previous version"):
            rollback(model, store, "anna")


@pytest.mark.parametrize(("method", "nth", "when"), [
    ("set_registered_model_alias", 1, "before"),  # announced, nothing moved
    ("set_registered_model_alias", 2, "before"),  # previous moved, champion not yet
    ("set_registered_model_alias", 2, "after"),  # both moved, not finished
])  # fmt: skip
def test_a_promotion_killed_between_any_two_steps_is_finished_by_the_next_call(
    method: str, nth: int, when: str, model: str, store: Store, tmp_path: Path, server: Server
) -> None:
    promote(model, 1, store, "anna")
    die(method, nth, when, model, 2, tmp_path / "store", server)
    assert "entry 3 is not finished" in show_model(model, store)["pending"]
    move = promote(model, 2, store, "bert")
    assert not move.moved
    assert move.notes == ("finished entry 3 of the one who dies: moved", "version 2 is champion already")
    assert kinds(store, model) == ["promote", "finish"] * 2
    assert_in_order(model, store, 2, 1)


def test_whoever_comes_next_finishes_first_and_then_moves(
    model: str, store: Store, tmp_path: Path, server: Server
) -> None:
    promote(model, 1, store, "anna")
    die("set_registered_model_alias", 2, "before", model, 2, tmp_path / "store", server)
    assert promote(model, 3, store, "bert").aliases == Aliases(3, 2)
    assert kinds(store, model) == ["promote", "finish"] * 3
    assert_in_order(model, store, 3, 2)


def die(method: str, nth: int, when: str, name: str, version: int, folder: Path, server: Server) -> None:
    """Promote in a process that kills itself."""
    command = [
        sys.executable,
        "-m",
        "tests.support.dying",
        method,
        str(nth),
        when,
        "promote",
        name,
        str(version),
        str(folder),
    ]
    environment = {**os.environ, **server.environment}
    done = forking.run(command, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_an_announced_version_that_was_deleted_is_given_up(
    model: str, store: Store, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(model, 1, store, "anna")
    interrupted(monkeypatch, lambda: promote(model, 2, store, "anna"))
    client.delete_model_version(model, "2")
    with pytest.raises(RegistryInputError, match="version 2"):
        promote(model, 2, store, "bert")
    assert PromotionLog(store, model).read()[-1].outcome == "abandoned"
    assert_in_order(model, store, 1, None)
    assert promote(model, 3, store, "bert").aliases == Aliases(3, 1)


def test_a_version_deleted_between_announcement_and_move_is_a_clear_error(
    model: str, store: Store, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(model, 1, store, "anna")
    before_the_announcement(monkeypatch, lambda: client.delete_model_version(model, "2"))
    with pytest.raises(RegistryInputError, match=r"version 2 .* was deleted in MLflow"):
        promote(model, 2, store, "anna")
    assert_in_order(model, store, 1, None)


def test_an_old_champion_that_was_deleted_is_no_previous(
    model: str, store: Store, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(model, 1, store, "anna")
    interrupted(monkeypatch, lambda: promote(model, 2, store, "anna"))
    client.delete_model_version(model, "1")
    promote(model, 2, store, "bert")
    assert_in_order(model, store, 2, None)


def interrupted(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> None:
    """Stop a move right after its announcement, as a crash would."""
    with monkeypatch.context() as patch:
        patch.setattr(promotions._Desk, "_carry_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call()


def before_the_announcement(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Let ``act`` happen once, after a promotion has looked at everything and before it writes."""
    original, done = PromotionLog.append, []

    def append(*args: Any, **kwargs: Any) -> Any:
        if not done:
            done.append(True)
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(PromotionLog, "append", append)


def test_of_two_at_once_one_wins_and_the_other_says_who(
    model: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(model, 1, store, "anna")
    before_the_announcement(monkeypatch, lambda: promote(model, 2, store, "bert"))
    with pytest.raises(PromotionConflict, match=r"wrote entry 3 .* bert: promote version 2"):
        promote(model, 3, store, "carl")
    assert kinds(store, model) == ["promote", "finish"] * 2
    assert_in_order(model, store, 2, 1)


def test_one_that_is_overtaken_in_the_middle_restores_what_the_later_one_moved(
    model: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """anna announces and falls asleep; bert finishes her move, makes his own; then she wakes up and writes aliases."""
    promote(model, 1, store, "anna")
    original, asleep = promotions._Desk._set, []

    def set_late(desk: Any, aliases: Aliases) -> None:
        if not asleep:
            asleep.append(True)
            promote(model, 3, store, "bert")
        original(desk, aliases)

    monkeypatch.setattr(promotions._Desk, "_set", set_late)
    with pytest.raises(PromotionConflict, match="a later one has replaced it"):
        promote(model, 2, store, "anna")
    assert [entry.actor for entry in PromotionLog(store, model).read()] == ["anna"] * 3 + ["bert"] * 3
    assert_in_order(model, store, 3, 2)


def test_the_log_may_lie_in_a_bucket(model: str, evidence: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"s3://{bucket}/prod").upload(evidence, "")
    store = open_store(f"s3://{bucket}/prod")
    promote(model, 1, store, "anna")
    with monkeypatch.context() as patch:
        before_the_announcement(patch, lambda: promote(model, 2, store, "bert"))
        with pytest.raises(PromotionConflict, match=r"wrote entry 3 .* bert: promote version 2"):
            promote(model, 3, store, "carl")
    assert rollback(model, store, "anna").aliases == Aliases(1, 2)
    assert store.list("promotions") == [f"promotions/{model}/{number:08d}.json" for number in range(1, 7)]
    assert_in_order(model, store, 1, 2)


def test_many_at_once_leave_a_whole_log_that_agrees_with_the_aliases(model: str, store: Store) -> None:
    def work(number: int) -> str:
        try:
            return "done" if promote(model, 1 + number % 3, store, f"worker {number}").moved else "already"
        except PromotionConflict as error:
            assert "promote version" in str(error) or "finish entry" in str(error)
            return "conflict"

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(work, range(6)))
    assert "done" in outcomes
    entries = PromotionLog(store, model).read()
    assert entries[-1].kind == "finish"
    assert_in_order(model, store, entries[-1].after.champion, entries[-1].after.previous)


def test_a_champion_moved_by_hand_is_shown_recorded_and_not_undone(
    model: str, store: Store, client: MlflowClient
) -> None:
    promote(model, 1, store, "anna")
    client.set_registered_model_alias(model, "champion", "4")
    assert "the log says champion 1, previous –, MLflow says champion 4" in show_model(model, store)["outside"]
    assert history(model, store)["outside"] is not None
    move = promote(model, 2, store, "anna")
    assert move.aliases == Aliases(2, 4)
    assert "somebody had moved the aliases in MLflow" in move.notes[0]
    assert kinds(store, model) == ["promote", "finish", "outside", "promote", "finish"]
    assert_in_order(model, store, 2, 4)
    with pytest.raises(GateRefused):  # by hand it had got past gate and force alike: not a second time
        rollback(model, store, "anna")


def test_an_alias_set_by_hand_is_recorded_and_a_promotion_confirms_it(
    model: str, store: Store, client: MlflowClient
) -> None:
    """Who reads the log may draw with no champion that only an alias made one."""
    client.set_registered_model_alias(model, "champion", "1")
    assert promote(model, 1, store, "anna").moved
    assert kinds(store, model) == ["outside", "promote", "finish"]
    assert made_champion(read_log(client, store, model), 1)
    assert not promote(model, 1, store, "anna").moved
    client.delete_registered_model_alias(model, "champion")
    assert promote(model, 1, store, "anna").moved
    assert kinds(store, model) == ["outside", "promote", "finish", "outside", "promote", "finish"]
    assert_in_order(model, store, 1, None)


def test_the_log_knows_what_made_a_version_champion_while_it_moves_and_after(model: str, store: Store) -> None:
    for version in (1, 2):
        promote(model, version, store, "anna")
    entries = PromotionLog(store, model).read()
    for known, champions in ((0, set()), (1, {1}), (2, {1}), (3, {1, 2}), (4, {2})):
        made = [version for version in (1, 2, 3) if made_champion(entries[:known], version)]
        assert set(made) == champions, f"after {known} entries"
    assert made_champion(entries, 2) == entries[2]
    given_up = dataclasses.replace(entries[3], outcome="abandoned", after=entries[3].before)
    assert made_champion((*entries[:3], given_up), 1) == entries[0]
    assert PromotionLog(store, model).read(entries[:2]) == entries
    with pytest.raises(LogDamaged, match="was there a moment ago, and is gone"):
        PromotionLog(store, model).read((*entries, entries[3]))


def test_a_log_that_was_cut_off_or_is_another_stores_is_noticed(model: str, store: Store, tmp_path: Path) -> None:
    for version in (1, 2):
        promote(model, version, store, "anna")
    with pytest.raises(LogDamaged, match="is this another --store than before"):
        promote(model, 3, open_store(str(tmp_path / "elsewhere")), "anna")
    last = max((tmp_path / "store").rglob("0*.json"))
    last.unlink()
    with pytest.raises(LogDamaged, match="has 3 entries, but MLflow remembers entry 4"):
        history(model, store)


@pytest.mark.parametrize(("name", "version"), [("spare.canvas.nothing-here", 1), ("../x", 1)])
def test_what_is_not_registered_is_not_promoted(name: str, version: int, store: Store) -> None:
    with pytest.raises(RegistryInputError):
        promote(name, version, store, "anna")
    with pytest.raises(RegistryInputError):
        show_model(name, store)


@pytest.mark.parametrize(("actor", "reason"), [("", ""), ("anna", "a\x1b[31m"), ("a\nb", ""), ("anna", "x" * 2001)])
def test_words_that_would_spoil_the_log_are_refused(actor: str, reason: str, store: Store) -> None:
    with pytest.raises(RegistryInputError):
        promote("spare.canvas.rust", 1, store, actor, reason)


def test_the_list_shows_models_with_their_aliases(model: str, store: Store) -> None:
    promote(model, 2, store, "anna")
    [found] = [one for one in list_models() if one["name"] == model]
    assert found["aliases"] == {"champion": 2}
    assert found["latest"] == 4
