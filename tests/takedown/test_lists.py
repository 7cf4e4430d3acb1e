"""Takedown lists: whatever people write is data, and all that is wrong with a list is told at once."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.errors import InputError
from spare_core.takedown.conflicts import compare
from spare_core.takedown.doubts import doubts
from spare_core.takedown.reading import TakedownList, read_list
from spare_core.takedown.request import TakedownRequest
from spare_core.takedown.schema import FILE, written

GOOD: dict[str, Any] = {
    "request_id": "R-1", "concept": "Neon Lines", "kind": "style", "surrogate": "Photo", "regime": "dmca",
    "received_at": "2026-11-24T09:00:00Z", "requester": "case-1",
}  # fmt: skip
ATTACKS = [
    '"; rm -rf /',
    "../../x",
    "{{inputs}}",
    "=cmd|' /C calc'!A0",
    "🎨 日本画",
    "$(id)",
    "%s%n",
    "<script>",
    "No",
    "1984",
]


def row(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def request(**changes: Any) -> TakedownRequest:
    return TakedownRequest.model_validate(row(**changes))


def written_as(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file of that kind."""
    path = folder / f"list{suffix}"
    if suffix == ".yaml":
        path.write_text(yaml.safe_dump({"schema": "spare.takedown/1", "requests": rows}, allow_unicode=True))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in rows))
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(key for one in rows for key in one)))
        writer.writeheader()
        writer.writerows(
            {key: "|".join(value) if isinstance(value, list) else value for key, value in one.items()} for one in rows
        )
        path.write_bytes(text.getvalue().encode("utf-8-sig"))
    return path


def read(folder: Path, text: str | bytes, name: str) -> TakedownList:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_list(path)


@pytest.mark.parametrize("suffix", [".yaml", ".jsonl", ".csv"])
def test_a_list_is_the_same_in_every_form(tmp_path: Path, suffix: str) -> None:
    rows = [row(concept=text, request_id=f"R-{i}", aliases=["a", "b"]) for i, text in enumerate(ATTACKS)]
    found = read_list(written_as(tmp_path, suffix, rows))
    assert found.problems == []
    assert [one.request.concept for one in found.rows] == ATTACKS
    assert found.rows[0].request == request(request_id="R-0", concept=ATTACKS[0], aliases=["a", "b"])


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=60), st.sampled_from([".yaml", ".jsonl", ".csv"]))
@example("0\x850", ".jsonl")
@example("0\x850", ".yaml")
def test_any_text_is_read_as_it_is_or_refused_by_its_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str
) -> None:
    """And leaves nothing but the list itself."""
    folder = tmp_path_factory.mktemp("any")
    try:
        path = written_as(folder, suffix, [row(), row(request_id="R-2", concept=text)])
    except UnicodeEncodeError:
        return
    try:
        found = read_list(path)
    except InputError:  # what no YAML can hold
        assert suffix == ".yaml"
        return
    if suffix == ".yaml":  # PyYAML folds U+0085 into a space as it writes
        assume(yaml.safe_load(path.read_text("utf-8"))["requests"][1]["concept"] == text)
    assert found.rows[0].request == request()
    if len(found.rows) == 2:
        assert found.rows[1].request.concept == text.strip()
        assert found.problems == []
    else:
        assert len({problem.line for problem in found.problems}) == 1
    assert [one.name for one in folder.iterdir()] == [path.name]


@pytest.mark.parametrize("dialect", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheets_are_read_however_they_write(tmp_path: Path, dialect: str, encoding: str) -> None:
    header = dialect.join(GOOD)
    cells = dialect.join([*list(GOOD.values())[:1], '"Neon ""Lines"", two\nrows"', *list(GOOD.values())[2:]])
    content = f"{header}\r\n{cells}\r\n\r\n{dialect.join(GOOD.values())}\r\n".encode(encoding)
    found = read(tmp_path, content, "list.csv")
    assert [problem.line for problem in found.problems] == [2], found.problems  # a line break in a concept
    assert [(one.line, one.request.concept) for one in found.rows] == [(5, "Neon Lines")]


def test_a_spreadsheets_columns_may_be_called_as_people_do_and_padded(tmp_path: Path) -> None:
    """Columns without a name count only if something is in them, which is refused with its place."""
    names = ["Request ID", "concept ", "KIND", "Surrogate", "regime", "Received-At", "requester"]
    header = ";".join([*names, "", " "])
    values = ";".join(row(kind=" Style", regime="DMCA", received_at="24.11.2026").values())
    text = f"{header}\n{values};;\n{values};;;;\n;;;;;;;;\n{values.replace('R-1', 'R-2')};urgent;\n{values};;;;x\n"
    found = read(tmp_path, text, "list.csv")
    assert [one.line for one in found.rows] == [2, 3]
    assert found.rows[0].request == request(received_at="2026-11-24T00:00:00Z")
    assert [(one.line, one.reason.partition(",")[0]) for one in found.problems] == [
        (5, "has 'urgent' in column 8"), (6, "has 'x' in column 11"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"unknown 'concpt' \(meant: concept\?\); known"):
        read(tmp_path, "request_id,concpt\n1,x", "list.csv")


def test_a_day_is_in_the_zone_that_the_list_is_read_in(tmp_path: Path) -> None:
    path = written_as(tmp_path, ".csv", [row(received_at="2026-11-24", due_at="2026-12-01")])
    (found,) = read_list(path, ZoneInfo("Europe/Berlin")).rows
    assert found.request.received_at == datetime(2026, 11, 23, 23, tzinfo=UTC)
    assert found.request.due_at == datetime(2026, 12, 1, 22, 59, 59, tzinfo=UTC)
    assert found.request.model_dump(mode="json")["received_at"] == "2026-11-24T00:00:00+01:00"


def test_what_may_be_meant_otherwise_is_told(tmp_path: Path) -> None:
    rows = [
        row(concept="Neon Lines, Rust", aliases=["Steins;Gate", "Martin Luther King, Jr.", "a | b"]),
        row(request_id="R-2", received_at="2062-11-24", due_at="2066-01-01"),
        row(request_id="R-3", received_at="2016-11-24"),
        row(request_id="R-4", concept="Georgia O'Keeffe", aliases=["O'Keeffe", "O'Keeffes"]),
        row(request_id="R-5", concept="Georgia O\u2019Keeffe"),
        row(request_id="R-6", concept="the O'Keeffes", aliases=["Spider Man"]),
        row(request_id="R-7", concept="Spider-Men", aliases=["Spider-Man"]),
    ]
    found = doubts(read_list(written_as(tmp_path, ".jsonl", rows)), datetime(2026, 11, 26, tzinfo=UTC))
    assert [(one.line, one.field) for one in found] == [
        (1, "concept"), (1, "aliases"), (2, "received_at"), (2, "due_at"), (3, "received_at"),
        (6, "concept"), (7, "concept"),
    ]  # fmt: skip
    assert "'Neon Lines, Rust' is taken as one name; if it is 'Neon Lines', 'Rust'" in found[0].reason
    assert found[4].reason == "2016-11-24 00:00 UTC is 10 years ago"
    assert '"the O\'Keeffes" is "O\'Keeffe" of R-4, written otherwise' in found[5].reason
    assert "'Spider-Man' is 'Spider Man' of R-6" in found[6].reason


def test_excels_own_first_line_is_understood(tmp_path: Path) -> None:
    text = "sep=;\r\n" + ";".join(GOOD) + "\r\n" + ";".join(GOOD.values()) + "\r\n" + ";".join(row(kind="x").values())
    found = read(tmp_path, text, "list.csv")
    assert [one.line for one in found.rows] == [3]
    assert str(found.problems[0]).startswith(f"{tmp_path}/list.csv:4: kind: 'x'")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"request_id": "../x"}, "request_id", "'../x'"),
    ({"request_id": ""}, "request_id", "''"),
    ({"concept": ""}, "concept", "the concept is empty"),
    ({"concept": "a\u200fb"}, "concept", "U+200F"),
    ({"concept": "a\x00b"}, "concept", "U+0000"),
    ({"concept": "x" * 10_000}, "concept", "has 10000 characters"),
    ({"aliases": ["a\x1b[31m"]}, "aliases", "U+001B"),
    ({"aliases": ["photo"]}, "", "the surrogate 'Photo' is the concept itself"),
    ({"protect": ["neon lines"]}, "", "both to be erased and to be kept"),
    ({"kind": "colour"}, "kind", "'colour'"),
    ({"regime": "none"}, "regime", "'none'"),
    ({"received_at": "soon"}, "received_at", "this is no day; write 2026-11-24"),
    ({"received_at": 1764000000}, "received_at", "seconds since 1970, write 2025-11-24T16:00:00Z"),
    ({"received_at": True}, "received_at", "it must be text"),
    ({"due_at": "2026-11-23T09:00:00Z"}, "", "due_at 2026-11-23T09:00:00+00:00 is before received_at"),
    ({"territorial_scope": ["Germany"]}, "territorial_scope.0", "'Germany'"),
    ({"images": [{"uri": "s3://b/x.png", "sha256": "abc"}]}, "images.0.sha256", "'abc'"),
    ({"counter_notice_of": "R-1"}, "", "counter_notice_of is the request itself"),
    ({"counter_notice_of": "R-0"}, "", "a counter-notice names no concept"),
    ({"concpt": "x"}, "concpt", "is unknown; known: request_id"),
]


@pytest.mark.parametrize(("changes", "field", "reason"), BAD)
def test_each_wrong_value_is_named_with_its_line_and_field(
    tmp_path: Path, changes: dict[str, Any], field: str, reason: str
) -> None:
    rows = [row(request_id="R-0"), row(**changes)]
    found = read(tmp_path, "\n".join(map(json.dumps, rows)), "list.jsonl")
    assert len(found.rows) == 1
    assert any(
        problem.line == 2 and problem.field == field and reason in problem.reason for problem in found.problems
    ), found.problems
    assert all("\n" not in str(problem) and len(str(problem)) < 1000 for problem in found.problems)


def test_every_problem_of_a_row_is_told_and_no_personal_data_repeated(tmp_path: Path) -> None:
    bad = row(concept="", kind="x", requester="jane.doe@example.org", regime="")
    found = read(tmp_path, json.dumps(bad), "list.jsonl")
    assert {problem.field for problem in found.problems} == {"concept", "kind", "requester", "regime"}
    assert "jane" not in "".join(map(str, found.problems))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("list.txt", "", "no takedown list by its name; allowed: .yaml"),
        ("list.yaml", "", "is empty"),
        ("list.yaml", "a: [", "is no YAML"),
        ("list.yaml", "schema: spare.takedown/9\nrequests: []", "schema: spare.takedown/1"),
        ("list.yaml", "- &a {request_id: R-1}\n- *a", "uses YAML's aliases"),
        ("list.yaml", "- !!python/object/apply:os.system [ls]", "is no YAML|is no mapping"),
        ("list.yaml", "[]", "holds no request"),
        ("list.jsonl", "\n\n", "is empty"),
        ("list.csv", "id,concept\n1,x", "its header has unknown 'id'"),
        ("list.csv", "request_id,concept,concept\n1,x,y", "concept twice"),
        ("list.csv", b"\xff\x00\xfe", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_is_refused_as_a_whole(
    tmp_path: Path, name: str, text: str | bytes, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        found = read(tmp_path, text, name)
        raise InputError("; ".join(map(str, found.problems)))
    with pytest.raises(InputError, match="cannot read"):
        read_list(tmp_path / f"none{Path(name).suffix}".replace(".txt", ".csv"))


def test_bad_lines_do_not_hide_the_good_ones(tmp_path: Path) -> None:
    text = f'{json.dumps(GOOD)}\n{{"request_id": 1\n[]\n{{"a": 1, "a": 2}}\n\n{json.dumps(row(request_id="R-2"))}'
    found = read(tmp_path, text, "list.jsonl")
    assert [(one.line, one.request.request_id) for one in found.rows] == [(1, "R-1"), (6, "R-2")]
    assert [problem.line for problem in found.problems] == [2, 3, 4]


def test_people_may_write_a_regime_as_they_do() -> None:
    assert [request(regime=text).regime for text in ("GDPR Art. 17", "Court Order", "DSA")] == [
        "gdpr",
        "court_order",
        "dsa",
    ]


def test_the_committed_schema_is_what_the_model_says() -> None:
    """Stale? python -m spare_core.takedown.schema"""
    assert FILE.read_text(encoding="utf-8") == written()
    assert set(json.loads(written())["$defs"]["request"]["required"]) == {
        "request_id", "regime", "received_at",
    }  # fmt: skip


# --- what rows say of each other -------------------------------------------------------------------------------------


def conflicts(*rows: dict[str, Any]) -> list[str]:
    requests = [request(**{"request_id": f"R-{i}", **one}) for i, one in enumerate(rows, 1)]
    return [str(one) for one in compare(requests).conflicts]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{}, {"request_id": "R-1", "surrogate": "Rust"}], "R-1: the id names two different requests"),
        ([{}, {"surrogate": "Rust"}], "R-1, R-2: 'neon lines' cannot become 'Photo' and 'Rust'"),
        ([{}, {"concept": "Rust", "protect": ["NEON lines"]}], "R-2, R-1: 'NEON lines' is protected by the first"),
        (
            [{}, {"concept": "Rust", "protect": ["the neon line"]}],
            "R-2, R-1: 'the neon line' is protected by the first",
        ),
        ([{}, {"concept": "Photo", "surrogate": "neon Lines"}], "round in a circle: neon lines -> photo -> neon lines"),
        ([{}, {"concept": "Glow", "aliases": ["neon lines"]}], "R-1, R-2: 'neon lines' is in both"),
    ],
)
def test_what_cannot_be_done_together_is_found(rows: list[dict[str, Any]], said: str) -> None:
    (found,) = conflicts(*rows)
    assert said in found


def test_what_is_asked_twice_is_done_once() -> None:
    """Also by another requester, and where one leaves the surrogate open; the very same row is one request."""
    rows = [row(), row(), row(request_id="R-2", requester="x"), row(request_id="R-3", surrogate="auto")]
    found = compare(map(TakedownRequest.model_validate, rows))
    assert (found.conflicts, found.repeated) == ([], {"R-2": "R-1", "R-3": "R-1"})


def test_a_counter_notice_takes_a_request_back_before_anything_is_done() -> None:
    """What is taken back is in nobody's way; what is not in the list may have been asked for earlier."""
    notice = {name: value for name, value in GOOD.items() if name not in ("concept", "kind", "surrogate")}
    notices = [notice | {"request_id": f"C-{name}", "counter_notice_of": name} for name in ("R-1", "X")]
    rows = [row(), *notices, row(request_id="R-2", surrogate="Rust")]
    found = compare(map(TakedownRequest.model_validate, rows))
    assert found.withdrawn == {"R-1": "C-R-1"}
    assert (found.conflicts, found.repeated) == ([], {})


# --- the command -----------------------------------------------------------------------------------------------------


def test_validate_tells_all_and_its_exit_code_says_whether_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, [row(), row(request_id="R-2", kind="x")])))
    refused = CliRunner().invoke(app, ["takedown", "validate", str(path)])
    assert refused.exit_code == 2
    assert "1 good rows, 1 bad ones" in refused.stdout and f"{path}:2: kind: 'x'" in refused.stdout
    skipped = CliRunner().invoke(app, ["takedown", "validate", str(path), "--skip-invalid", "--json"])
    assert skipped.exit_code == 0
    assert json.loads(skipped.stdout)["problems"][0]["line"] == 2
    path.write_text("\n".join(map(json.dumps, [row(), row(request_id="R-2", surrogate="Rust")])))
    conflicting = CliRunner().invoke(app, ["takedown", "validate", str(path), "--skip-invalid"])
    assert conflicting.exit_code == 2 and "cannot become" in conflicting.stdout
