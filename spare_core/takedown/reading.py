"""Reading takedown lists: YAML, JSON, JSON lines, or CSV as spreadsheets write it.

Every row is checked, and all that is wrong with any of them is reported at once, with file, line and field. Values
are data: a spreadsheet's formula is text, YAML's aliases (which can blow a small file up) are refused.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic import ValidationError

from spare_core.errors import InputError
from spare_core.files.strict_yaml import Texts, check_aliases, repeated
from spare_core.store.fetching import local_path
from spare_core.takedown.request import SCHEMA, TakedownRequest

SEPARATOR: Final = "|"
"""Between the texts of one cell of a CSV file."""
_MOST_BYTES: Final = 64 * 2**20
_FIELDS: Final = tuple(TakedownRequest.model_fields)
_LISTS: Final = ("aliases", "protect", "territorial_scope", "images")
_SHOWN: Final = 80
_PRIVATE: Final = ("requester", "notes", "ground")
"""What may hold personal data by mistake is not repeated in an error, which ends in a log."""


_BLANK: Final = re.compile(r"\s*")
_SHEETS: Final = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_SOMETHING_ELSE: Final = (
    (b"pk\x03\x04", "a spreadsheet or another archive; save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of an old Excel; save it as CSV UTF-8"),
    (b"%pdf", "a PDF; write its requests as CSV, YAML or JSON"),
    (b"<!doctype html", "a web page, perhaps one that asks for a login; fetch the list itself"),
    (b"<html", "a web page, perhaps one that asks for a login; fetch the list itself"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the list itself (git lfs pull)"),
)
"""How files begin that are none, whatever they are called; in small letters."""


class Problem(NamedTuple):
    """What is wrong with a field of a row; ``field`` is empty where it is the row as a whole."""

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.file}:{self.line}: {f'{self.field}: ' if self.field else ''}{self.reason}"


class Row(NamedTuple):
    """A good row, and where it stands."""

    line: int
    request: TakedownRequest


class TakedownList(NamedTuple):
    """What a file holds: its good rows in order, and all that is wrong with the others."""

    file: str
    rows: list[Row]
    problems: list[Problem]


class _Raw(NamedTuple):
    """A row as it stands in a file, or what keeps it from being one."""

    line: int
    values: Any
    problem: str = ""


def read_lists(source: str | Path, zone: tzinfo = UTC) -> list[TakedownList]:
    """The list ``source``, or all lists that lie in the folder of that name, here or in S3, by name.

    Raises:
        InputError: see :func:`read_list`; also for a folder without any.
        StoreError: if they cannot be fetched.
    """
    if Path(str(source)).suffix.lower() in READERS:
        return [read_list(source, zone)]
    folder = local_path(source, [f"*{suffix}" for suffix in READERS])
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS) if folder.is_dir() else []
    if not files:
        raise InputError(f"{source} is neither a takedown list nor a folder of lists; allowed: {', '.join(READERS)}")
    return [
        read_list(file, zone)._replace(file=f"{str(source).rstrip('/')}/{file.relative_to(folder)}") for file in files
    ]


def read_list(source: str | Path, zone: tzinfo = UTC) -> TakedownList:
    """The list in a YAML, JSON, JSON lines or CSV file, here or in S3. Times that name no zone are in ``zone``.

    Raises:
        InputError: if the file as a whole is no list: missing, too large, in no known encoding, or of another kind.
        StoreError: if it cannot be fetched.
    """
    reader = READERS.get(Path(str(source)).suffix.lower())
    if reader is None:
        sheet = ": save the spreadsheet as CSV UTF-8" if Path(str(source)).suffix.lower() in _SHEETS else ""
        raise InputError(f"{source} is no takedown list by its name; allowed: {', '.join(READERS)}{sheet}")
    name, text = str(source), _text(local_path(source), str(source))
    rows, problems = [], []
    for raw in reader(text, name):
        found = [("", raw.problem)] if raw.problem else []
        if not found:
            try:
                rows.append(Row(raw.line, TakedownRequest.model_validate(raw.values, context={"zone": zone})))
            except ValidationError as error:
                found = list(_reasons(error))
        problems += [Problem(name, raw.line, field, reason) for field, reason in found]
    if not rows and not problems:
        raise InputError(f"{source} holds no request")
    return TakedownList(name, rows, problems)


def _text(path: Path, name: str) -> str:
    """UTF-8, or UTF-16 with a mark at its beginning, as spreadsheets write "Unicode text"."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{name} has {path.stat().st_size >> 20} MiB; a list has at most {_MOST_BYTES >> 20}")
        content = path.read_bytes()
        for sign, what in _SOMETHING_ELSE:
            if content.lstrip()[: len(sign)].lower() == sign:
                raise InputError(f"{name} is {what}")
        if not content.strip():
            raise InputError(f"{name} is empty")
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8 (spreadsheets: CSV UTF-8)"
        ) from None


def _reasons(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Field and reason of each problem, with the value it got as far as that is short."""
    for one in error.errors(include_url=False):
        field = ".".join(map(str, one["loc"]))
        kind, message = one["type"], one["msg"].removeprefix("Value error, ")
        if kind == "missing":
            yield field, "is missing"
        elif kind == "extra_forbidden":
            yield field, f"is unknown; known: {', '.join(_FIELDS)}"
        elif not field:  # of the row as a whole: it names its values itself
            yield "", message
        elif field in _PRIVATE:
            yield field, message
        else:
            shown = repr(one["input"])
            yield field, f"{shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}…'}: {message}"


def _yaml(text: str, name: str) -> Iterator[_Raw]:
    """A list of mappings, or a mapping with ``schema`` and that list as ``requests``."""
    loader = Texts(text)
    try:
        try:
            check_aliases(text)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            if twice := next(repeated(root), ""):
                raise InputError(f"{name}: {twice}")
            keys = {str(key.value): value for key, value in root.value}
            schema = keys.pop("schema", None)
            if schema is None or schema.value != SCHEMA or set(keys) != {"requests"}:
                raise InputError(f"{name} must be a list of requests, or hold schema: {SCHEMA} and requests")
            root = keys["requests"]
        if not isinstance(root, yaml.SequenceNode):
            raise InputError(f"{name} must be a list of requests, or hold schema: {SCHEMA} and requests")
        for node in root.value:
            line = node.start_mark.line + 1
            if not isinstance(node, yaml.MappingNode):
                yield _Raw(line, None, "is no mapping of names to values")
                continue
            problem = next(repeated(node), "").partition(": ")[2]
            yield _Raw(line, loader.construct_object(node, deep=True), problem)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{name} is no YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _jsonl(text: str, name: str) -> Iterator[_Raw]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values = json.loads(content, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            yield _Raw(line, None, f"is no JSON: {error}")
            continue
        yield _Raw(line, values, "" if isinstance(values, dict) else "is no mapping of names to values")


def _json(text: str, name: str) -> Iterator[_Raw]:
    """One document: a list of objects, or an object with ``schema`` and that list as ``requests``."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    try:
        whole = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no JSON: {error}") from None
    rows, start = whole, text.find("[")
    if isinstance(whole, dict):
        rows = whole.get("requests") if whole.keys() == {"schema", "requests"} and whole["schema"] == SCHEMA else None
        start = text.find("[", text.find('"requests"'))
    if not isinstance(rows, list):
        raise InputError(f"{name} must be a list of requests, or hold schema: {SCHEMA} and requests")
    line, place = 1, 0
    for values in rows:
        start = _BLANK.match(text, start + 1).end()  # type: ignore[union-attr]  # it matches nothing, too
        line, place = line + text.count("\n", place, start), start
        start = _BLANK.match(text, decoder.raw_decode(text, start)[1]).end()  # type: ignore[union-attr]  # at the comma
        yield _Raw(line, values, "" if isinstance(values, dict) else "is no mapping of names to values")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{', '.join(sorted({key for key in names if names.count(key) > 1}))} is named twice")
    return found


def _csv(text: str, name: str) -> Iterator[_Raw]:
    """A header of field names, then a row a request; commas, semicolons or tabs between cells, empty cells and columns
    without a name are left out, several texts of a cell have ``|`` between them."""
    first = text.lstrip("\r\n").partition("\n")[0]
    if first.lower().startswith("sep="):  # Excel's own way to say it
        delimiter, text = first.strip()[4:5] or ",", text.lstrip("\r\n").partition("\n")[2]
        skipped = 1
    else:
        delimiter, skipped = max(",;\t", key=first.count), 0
    csv.field_size_limit(_MOST_BYTES)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [_field(cell) for cell in next(rows, [])]
    except csv.Error as error:
        raise InputError(f"{name} is no CSV: {error}") from None
    named = [cell for cell in header if cell]
    unknown = [cell for cell in named if cell not in _FIELDS]
    twice = sorted({cell for cell in named if header.count(cell) > 1})
    if unknown or twice or "request_id" not in header:
        what = ", ".join(map(_unknown, unknown)) if unknown else f"{', '.join(twice)} twice" if twice else ""
        raise InputError(f"{name}: its header has {what or 'no request_id'}; known: {', '.join(_FIELDS)}")
    line = rows.line_num
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Raw(line + 1 + skipped, None, f"is no CSV: {error}; nothing after it was read")
            return
        start, line = line + 1 + skipped, rows.line_num
        if not any(cell.strip() for cell in cells):
            continue
        place = next((i for i, cell in enumerate(cells) if cell.strip() and not (header[i:] and header[i])), None)
        if place is not None:
            shown = repr(cells[place].strip()[:_SHOWN])
            yield _Raw(
                start, None, f"has {shown} in column {place + 1}, which has no name in the header; name it there, or "
                f"quote texts that hold {delimiter!r}"
            )  # fmt: skip
            continue
        yield _Raw(start, {key: _cell(key, cell) for key, cell in zip(header, cells, strict=False) if cell.strip()})


def _field(cell: str) -> str:
    """A field as its column is called: "Request ID" is request_id."""
    return "_".join(cell.strip().lower().replace("-", " ").replace("_", " ").split())


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"unknown {name!r}{f' (meant: {near[0]}?)' if near else ''}"


def _cell(field: str, text: str) -> Any:
    if field not in _LISTS:
        return text
    parts = [part.strip() for part in text.split(SEPARATOR) if part.strip()]
    if field != "images":
        return parts
    split = (part.rpartition("#sha256=") for part in parts)
    return [{"uri": uri, "sha256": digest} for uri, _, digest in split]


READERS: Final = {
    ".yaml": _yaml, ".yml": _yaml, ".json": _json, ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv,
}  # fmt: skip
