"""The promotion log: numbered, chained, and whole, or it says where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spare_core.errors import LogDamaged, PromotionConflict, RegistryInputError
from spare_core.registry.log import Aliases, Entry, PromotionLog, aliases_after
from spare_core.store import Store, open_store

MODEL = "spare.canvas.rust"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def written(store: Store) -> list[Entry]:
    """Two promotions, each with its end."""
    log, entries, last = PromotionLog(store, MODEL), [], None
    for before, after in ((Aliases(), Aliases(1)), (Aliases(1), Aliases(2, 1))):
        last = log.append(last, "promote", "anna", before, after, reason="figures are good 🎨")
        entries.append(last)
        last = log.append(last, "finish", "anna", before, after, of=last.number, outcome="moved")
        entries.append(last)
    return entries


def path_of(tmp_path: Path, number: int) -> Path:
    """Where a folder store keeps an entry."""
    [path] = (tmp_path / "store").rglob(f"{number:08d}.json")
    return path


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_appended_is_read_back(store: Store) -> None:
    entries = written(store)
    assert PromotionLog(store, MODEL).read() == tuple(entries)
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    assert entries[1].previous_sha256 == entries[0].sha256
    assert aliases_after(tuple(entries)) == Aliases(champion=2, previous=1)
    assert "anna: promote version 2 (champion 1, previous – -> champion 2, previous 1)" in entries[2].as_line()


def test_a_model_that_was_never_promoted_has_an_empty_log(store: Store) -> None:
    assert PromotionLog(store, MODEL).read() == ()
    assert aliases_after(()) == Aliases()


def test_a_models_log_is_not_that_of_one_whose_name_begins_alike(store: Store) -> None:
    written(store)
    assert PromotionLog(store, MODEL[:-1]).read() == ()


@pytest.mark.parametrize("changes", [
    {"actor": "mallory"}, {"previous_sha256": "0" * 64}, {"number": 7}, {"model": "spare.canvas.photo"}, {"of": 3},
    {"kind": "outside"}, {"kind": "fork"}, {"schema": "spare.promotion/2"}, {"after": {"champion": "9"}},
    {"after": None}, {"surplus": 1},
])  # fmt: skip
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_entry_that_was_changed_is_named(store: Store, tmp_path: Path, changes: dict[str, Any], number: int) -> None:
    written(store)
    rewrite(path_of(tmp_path, number), **changes)
    with pytest.raises(LogDamaged, match=rf"entry ({number}|{number + 1}) of the promotion log"):
        PromotionLog(store, MODEL).read()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_entry_that_was_removed_is_named(store: Store, tmp_path: Path, number: int) -> None:
    written(store)
    path_of(tmp_path, number).unlink()
    with pytest.raises(LogDamaged, match=rf"entry {number} of the promotion log .* is missing"):
        PromotionLog(store, MODEL).read()


def test_an_entry_that_was_taken_out_and_the_rest_moved_up_is_named(store: Store, tmp_path: Path) -> None:
    written(store)
    folder = path_of(tmp_path, 1).parent
    path_of(tmp_path, 2).unlink()
    for number in (3, 4):
        path_of(tmp_path, number).rename(folder / f"{number - 1:08d}.json")
    with pytest.raises(LogDamaged, match="entry 2 of the promotion log"):
        PromotionLog(store, MODEL).read()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"[]", b"{}", b"null", b'{"schema": "spare.promotion/1"}'])
def test_rubbish_in_place_of_an_entry_is_named(store: Store, tmp_path: Path, content: bytes) -> None:
    written(store)
    path_of(tmp_path, 2).write_bytes(content)
    with pytest.raises(LogDamaged, match=r"entry 2 of the promotion log .* is no entry"):
        PromotionLog(store, MODEL).read()


def test_of_two_that_write_the_same_number_one_wins_and_the_other_says_who_did(store: Store) -> None:
    last = written(store)[-1]
    log = PromotionLog(store, MODEL)
    log.append(last, "promote", "anna", Aliases(2, 1), Aliases(3, 2))
    with pytest.raises(PromotionConflict, match=r"wrote entry 5 of spare\.canvas\.rust: .* anna: promote version 3"):
        log.append(last, "promote", "bert", Aliases(2, 1), Aliases(4, 2))
    assert len(log.read()) == 5


def test_a_log_is_only_kept_for_names_of_ours(store: Store) -> None:
    with pytest.raises(RegistryInputError):
        PromotionLog(store, "../../etc")
