"""A place for results is taken only if nothing is lost there, and before anything was worked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spare_core.errors import OutputError
from spare_core.files.output import check_output


def ours(path: Path) -> bool:
    return path.name.startswith("ours")


@pytest.mark.parametrize("there", [None, [], ["ours.json", "ours"]])
def test_what_is_new_empty_or_ours_is_taken(there: list[str] | None, tmp_path: Path) -> None:
    output = tmp_path / "a" / "out"
    if there is not None:
        output.mkdir(parents=True)
    for name in there or []:
        (output / name).touch()
    check_output(output, "report", ours)
    assert output.exists() is (there is not None), "nothing is made yet"


def test_what_would_be_lost_or_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    (tmp_path / "out" / "ours").touch()
    with pytest.raises(OutputError, match=r"holds thesis\.txt and no report of ours; give a new or empty --output"):
        check_output(tmp_path / "out", "report", ours)
    with pytest.raises(OutputError, match=r"thesis\.txt is a file; give a folder"):
        check_output(tmp_path / "out" / "thesis.txt", "report", ours)
    with pytest.raises(OutputError, match=r"thesis\.txt cannot be written to"):
        check_output(tmp_path / "out" / "thesis.txt" / "below", "report", ours)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(OutputError, match=r"cannot be written to; give another --output"):
        check_output(tmp_path / "new" / "out", "report", ours)
