"""One reader of YAML: what is written is what is meant, or one line says why not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spare_core.files.strict_yaml import Values, read_yaml_text


@pytest.mark.parametrize(("text", "value"), [
    ("On", "On"), ("no", "no"), ("Yes", "Yes"), ("y", "y"), ("1:30", "1:30"), ("2026-11-24", "2026-11-24"),
    ("0x10", "0x10"), ("1_000", "1_000"), ("true", True), ("FALSE", False), ("~", None), ("", None), ("null", None),
    ("12", 12), ("-3", -3), ("010", "010"), ("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("1E3", 1000.0),
    (".inf", math.inf), ("'12'", "12"), ("=x", "=x"), ("[On, 1, 2.5]", ["On", 1, 2.5]),
    ("{a: {b: no}}", {"a": {"b": "no"}}),
])  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert read_yaml_text(text) == value
    assert type(read_yaml_text(text)) is type(value)


@pytest.mark.parametrize(("text", "said"), [
    ("steps: 2\nrank: 4\nsteps: 3", "line 1: names steps twice"),
    ("- a\n- {b: 1, c: {d: 1, d: 2}}", "line 2: names d twice"),
    ("a: &x [1]\nb: *x", "uses YAML's aliases"),
    ("a: [", "expected"),
    ("a: 1\n---\nb: 2", "expected a single document"),
    ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ("a: \x00", "special characters|unacceptable"),
    ("? [a]\n: b", "unhashable|found"),
])  # fmt: skip
def test_what_may_mean_two_things_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_yaml_text(text)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_before_it_is_built() -> None:
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(ValueError, match="aliases"):
        read_yaml_text("\n".join(levels))
    with pytest.raises(ValueError, match=r"recursion|expected|depth"):
        read_yaml_text("[" * 100_000)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)


@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)))
def test_all_of_json_is_read_as_it_is(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)  # surrogate pairs are no YAML
    if "Infinity" not in text and text.isprintable() and len(text) < 1000:
        assert read_yaml_text(text) == json.loads(text)


def test_no_loader_makes_objects() -> None:
    assert not issubclass(Values, yaml.Loader | yaml.UnsafeLoader)
