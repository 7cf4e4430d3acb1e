"""Lists as people have them, and as people who mean harm write them: each is read, or one line says what it is.

The command is called in this process and nothing is caught, so a traceback of any of them fails its test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.errors import InputError
from spare_core.takedown.reading import read_list, read_lists

HEAD = "request_id,concept,surrogate,kind,regime,received_at,requester\n"
ROW = {
    "request_id": "R-1", "concept": "Cat", "surrogate": "Dog", "kind": "object", "regime": "internal",
    "received_at": "2026-11-20T09:00:00Z", "requester": "me",
}  # fmt: skip
LINE = ",".join(ROW.values()) + "\n"


def rows(**changes: Any) -> bytes:
    """A list of one request, with changes to it; None leaves a field out."""
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not None}
    return yaml.safe_dump({"schema": "spare.takedown/1", "requests": [row]}, allow_unicode=True).encode()


READ: dict[str, bytes] = {
    "utf-16.csv": (HEAD + LINE).encode("utf-16"),
    "excel.csv": b"\xef\xbb\xbfsep=;\r\n" + (HEAD + LINE).replace(",", ";").encode(),
    "old-mac.csv": (HEAD + LINE).replace("\n", "\r").encode(),
    "tabs.tsv": (HEAD + LINE).replace(",", "\t").encode(),
    "spaces.csv": (HEAD + LINE).replace(",", " , ").encode(),
    "formula.csv": (HEAD + LINE.replace("Cat", "=1+cmd")).encode(),
    "array.json": json.dumps([ROW], indent="\t").encode(),
    "whole.json": json.dumps({"schema": "spare.takedown/1", "requests": [ROW]}).encode(),
    "lines.ndjson": f"\n{json.dumps(ROW)}\n\n".encode(),
    "numbers.yaml": rows(request_id=1, concept=1984, surrogate=12, requester=5),
    "emoji.yaml": rows(concept="👩\u200d🚀"),
    "escaped.json": json.dumps([{**ROW, "concept": "👩"}]).encode(),
    "expansion.yaml": rows(concept="$(AWS_SECRET_ACCESS_KEY) {{inputs.parameters.x}} `id`"),
    "many-aliases.yaml": rows(aliases=[f"alias {i}" for i in range(3000)]),
}


@pytest.mark.parametrize("name", READ)
def test_odd_lists_that_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(READ[name])
    done = CliRunner().invoke(app, ["takedown", "validate", str(tmp_path / name)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "1 good rows, 0 bad ones" in done.output


REFUSED: dict[str, tuple[bytes, str]] = {
    "latin-1.csv": ((HEAD + LINE.replace("Cat", "Käse")).encode("latin-1"), "is not UTF-8"),
    "empty.csv": (b"", "is empty"),
    "blank.yaml": (b"\n \n", "is empty"),
    "header.csv": (HEAD.encode(), "holds no request"),
    "ragged.csv": (HEAD.encode() + b"R-1,Cat\n", "regime: is missing"),
    "wide.csv": ((HEAD + LINE.strip() + ",x,y\n").encode(), "in column 8, which has no name in the header"),
    "twice.csv": ((HEAD.strip() + ",concept\n" + LINE).encode(), "its header has concept twice"),
    "other.csv": (b"name,what\nCat,away\n", "unknown 'name'"),
    "quote.csv": (HEAD.encode() + b'R-1,"Cat,Dog\n', "is no CSV: unexpected end of data"),
    "nul.csv": ((HEAD + LINE.replace("Cat", "C\0at")).encode(), "the control or invisible character U+0000"),
    "long.csv": ((HEAD + LINE.replace("Cat", "C" * 200_000)).encode(), "has 200000 characters; at most 300"),
    "sheet.xlsx": (b"PK\x03\x04", "save the spreadsheet as CSV UTF-8"),
    "sheet.csv": (b"PK\x03\x04\x14\0\6\0", "is a spreadsheet or another archive; save it as CSV UTF-8"),
    "old-sheet.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a spreadsheet of an old Excel"),
    "letter.csv": (b"%PDF-1.7\n", "is a PDF"),
    "login.csv": (b"\n<!DOCTYPE html><html>Sign in", "is a web page, perhaps one that asks for a login"),
    "pointer.yaml": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "strings.yaml": (b"[Cat, Dog]", "is no mapping of names to values"),
    "scalar.yaml": (b"Cat", "must be a list of requests, or hold schema"),
    "null.yaml": (b"schema: spare.takedown/1\nrequests: null", "must be a list of requests"),
    "schema.yaml": (b"schema: spare.takedown/99\nrequests: []", "must be a list of requests"),
    "twice.yaml": (rows() + b"requests: []\n", "names requests twice"),
    "tabs.yaml": (b"requests:\n\t- concept: Cat", "is no YAML"),
    "laughs.yaml": (b"a: &a [x]\nb: &b [*a, *a]\nrequests: *b", "it uses YAML's aliases"),
    "merge.yaml": (b"x: &x {concept: Cat}\nrequests: [{<<: *x}]", "it uses YAML's aliases"),
    "deep.yaml": (b"[" * 3000 + b"]" * 3000, "is no YAML"),
    "code.yaml": (b'!!python/object/apply:os.system ["touch pwned"]', "is no mapping of names to values"),
    "documents.yaml": (rows() + b"---\n" + rows(), "expected a single document"),
    "bytes.yaml": (b"\xff\xfe\x00\x01\x02", "is not UTF-8"),
    "deep.jsonl": (b"[" * 100_000, "is no JSON"),
    "deep.json": (b"[" * 100_000, "is no JSON"),
    "list.jsonl": (b"[1, 2]\n1e999\nNaN\n", "is no mapping of names to values"),
    "comma.jsonl": (json.dumps(ROW).encode() + b",\n", "is no JSON: Extra data"),
    "twice.json": (b'[{"concept": "Cat", "concept": "Dog"}]', "concept is named twice"),
    "object.json": (b'{"concept": "Cat"}', "must be a list of requests"),
    "half.yaml": (b'schema: spare.takedown/1\nrequests: [{concept: "\\ud83d"}]', "is no YAML"),
    "half.json": (json.dumps([{**ROW, "concept": "\ud83d"}]).encode(), "should be a valid string"),
    "half.jsonl": (json.dumps({**ROW, "concept": "\ud83d"}).encode(), "should be a valid string"),
    "turned.yaml": (rows(concept="Cat\u202eгод"), "the control or invisible character U+202E"),
    "hidden.yaml": (rows(concept="Ca\u200bt"), "the control or invisible character U+200B"),
    "path.yaml": (rows(request_id="../../etc/passwd"), "request_id: '../../etc/passwd'"),
    "itself.yaml": (rows(surrogate="the cats"), "is the concept itself"),
    "both.yaml": (rows(protect=["a cat"]), "is both to be erased and to be kept"),
    "nothing.yaml": (rows(surrogate=""), "the surrogate is empty"),
    "several.yaml": (rows(concept=["Cat", "Dog"]), "concept: ['Cat', 'Dog']"),
    "unknown.yaml": (rows(priority="high"), "priority: is unknown"),
    "kind.yaml": (rows(kind="painting"), "kind: 'painting'"),
    "day.yaml": (rows(received_at="2026-02-30"), "there is no such day"),
    "zone.yaml": (rows(received_at="2026-11-20T09:00:00+99:00"), "no place is +99:00 from UTC"),
    "before.yaml": (rows(due_at="2020-01-01T00:00:00Z"), "is before received_at"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_lists_that_are_refused_in_words(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    done = CliRunner().invoke(app, ["takedown", "validate", str(tmp_path / name)], catch_exceptions=False)
    assert done.exit_code == 2
    assert said in done.output
    assert [one.name for one in tmp_path.iterdir()] == [name], "something was run or written"


@pytest.mark.parametrize(("make", "said"), [
    (lambda path: path.mkdir(), "Is a directory"), (lambda path: path.symlink_to(path), "Too many levels of symbolic"),
    (lambda path: path.symlink_to("/nowhere/list"), "No such file"),
])  # fmt: skip
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "list.csv")
    with pytest.raises(InputError, match=said):
        read_list(tmp_path / "list.csv")


def test_a_json_lists_lines_are_told(tmp_path: Path) -> None:
    text = json.dumps({"schema": "spare.takedown/1", "requests": [ROW, {**ROW, "kind": "x"}, 3, ROW]}, indent=1)
    (tmp_path / "list.json").write_text(text)
    found = read_list(tmp_path / "list.json")
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines, 1) if line.strip() in ("{", "3,")][1:]
    assert [row.line for row in found.rows] == [starts[0], starts[3]]
    assert [problem.line for problem in found.problems] == [starts[1], starts[2]]


def test_a_folder_of_lists_has_them_in_every_form(tmp_path: Path) -> None:
    for name in ("array.json", "tabs.tsv", "lines.ndjson", "utf-16.csv"):
        (tmp_path / name).write_bytes(READ[name])
    assert [len(one.rows) for one in read_lists(tmp_path)] == [1, 1, 1, 1]
