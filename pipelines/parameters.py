"""``key=value`` of a command line, typed by the pipeline that takes them."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.definition import read_definition
from spare_core.errors import SettingsError
from spare_core.files.strict_yaml import read_yaml_text

_EXACT = 2**53
"""KFP carries every number as a double: above this, whole numbers are no longer exact."""


def parse(arguments: Sequence[str], definition: Path, checked_later: bool = False) -> dict[str, Any]:
    """The values of a pipeline's parameters, from ``key=value`` texts; what is not given keeps its default.

    A text parameter takes everything after the first '=' as it is. Numbers are decimal, truth values ``true`` or
    ``false``; lists and mappings are JSON or YAML ("[a, b]", "{steps: 20}"), in which no, on and 1:30 are texts and
    1e-3 is a number, as in JSON. Values are data: nothing is evaluated.

    With ``checked_later``, what is no list or mapping stays the text it is: the pipeline's first task then names it
    together with all else that is wrong.

    Raises:
        SettingsError: with every problem of all arguments, or if ``definition`` is no compiled pipeline.
    """
    takes = read_definition(definition).parameters
    given, problems = _pairs(arguments)
    values = {}
    for name, text in given.items():
        if name not in takes:
            problems.append(_unknown(name, takes))
            continue
        try:
            values[name] = _typed(text, takes[name])
        except ValueError as error:
            if checked_later and takes[name].parameter_type in (_TYPES.LIST, _TYPES.STRUCT):
                values[name] = text
                continue
            problems.append(f"{name} is {text!r}; it must be {error}{_meaning(takes[name])}")
    for name, spec in takes.items():
        if name not in given and not spec.is_optional and not spec.HasField("default_value"):
            problems.append(f"{name} is missing; give {name}=VALUE{_meaning(spec)}")
    if problems:
        raise SettingsError(problems)
    return values


def _pairs(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The arguments by name, and what is wrong with those that are none."""
    given: dict[str, str] = {}
    problems = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not (name and equals):
            problems.append(f"{argument!r} is no key=value")
        elif name in given:
            problems.append(f"{name} is given twice: {given[name]!r} and {text!r}")
        else:
            given[name] = text
    return given, problems


def _unknown(name: str, takes: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, takes, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown parameter {name!r}; {meant}The pipeline takes: {', '.join(sorted(takes)) or 'none'}"


def _meaning(spec: Any) -> str:
    return f" ({spec.description})" if spec.description else ""


def _typed(text: str, spec: Any) -> Any:
    """The value that ``text`` writes.

    Raises:
        ValueError: whose message says what it must be.
    """
    if spec.parameter_type not in _READERS:
        raise ValueError("left to KFP: it fills parameters of this type itself")
    return _READERS[spec.parameter_type](text)


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,16}", text) or abs(int(text)) > _EXACT:
        raise ValueError(f"a whole number between -{_EXACT} and {_EXACT}")
    return int(text)


def _double(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _list(text: str) -> list[Any]:
    value = _flow(text)
    if not isinstance(value, list):
        raise ValueError("a list, as in [a, b]")
    return value


def _struct(text: str) -> dict[str, Any]:
    value = _flow(text)
    if not isinstance(value, dict):
        raise ValueError("a mapping, as in {steps: 20}")
    return value


def _flow(text: str) -> Any:
    """What JSON or YAML text holds, as JSON can carry it; ``None`` if it is neither."""
    try:
        # YAML takes all of JSON but keys of more than 1,024 characters.
        value = _json(text) or read_yaml_text(text)
        return json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


_TYPES = pipeline_spec_pb2.ParameterType
_READERS: dict[int, Callable[[str], Any]] = {
    _TYPES.STRING: str,
    _TYPES.NUMBER_INTEGER: _integer,
    _TYPES.NUMBER_DOUBLE: _double,
    _TYPES.BOOLEAN: _boolean,
    _TYPES.LIST: _list,
    _TYPES.STRUCT: _struct,
}
