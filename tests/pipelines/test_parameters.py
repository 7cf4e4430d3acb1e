"""``key=value`` texts become what the pipeline takes, or one error that names everything wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.definition import SPARE, read_definition
from pipelines.parameters import parse
from spare_core.errors import SettingsError
from tests.support.pipelines_stand_in import compile_stand_in


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_stand_in(tmp_path_factory.mktemp("compiled") / "stand_in.yaml")


def problems(arguments: list[str], definition: Path) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        parse(arguments, definition)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_values_have_the_types_of_the_pipeline_and_defaults_stay_with_it(stand_in: Path) -> None:
    given = ["erase=Neon Lines", "steps=120", "density=1", "robust=True", "keep=[Photo, On Fire]", "options={lr: 1e-3}"]
    values = parse(given, stand_in)
    assert values == {
        "erase": "Neon Lines", "steps": 120, "density": 1.0, "robust": True, "keep": ["Photo", "On Fire"],
        "options": {"lr": 1e-3},
    }  # fmt: skip
    assert (type(values["steps"]), type(values["density"])) == (int, float)
    assert parse(["erase=x"], stand_in) == {"erase": "x"}


@pytest.mark.parametrize("text", ["1984", "true", "null", "", "a=b", " 7 ", '"quoted"', "[a]", "naïve 🎨", "NaN"])
def test_a_text_is_taken_as_it_is(text: str, stand_in: Path) -> None:
    assert parse([f"erase={text}"], stand_in) == {"erase": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[]", []),
        ('["Photo", "No"]', ["Photo", "No"]),
        ("[No, on, yes, 1:30, 2024-01-01, 010]", ["No", "on", "yes", "1:30", "2024-01-01", "010"]),
        ("[1, -2.5, 1e3, true, null, '1']", [1, -2.5, 1000.0, True, None, "1"]),
        ("[[a], {b: c}]", [["a"], {"b": "c"}]),
    ],
)
def test_lists_are_json_or_yaml_with_the_scalars_of_json(text: str, value: list[Any], stand_in: Path) -> None:
    assert parse(["erase=x", f"keep={text}"], stand_in)["keep"] == value


@settings(deadline=None)
@given(
    value=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)  # fmt: skip
def test_whatever_json_can_say_arrives_as_it_was(value: dict[str, Any], stand_in: Path) -> None:
    assert parse(["erase=x", f"options={json.dumps(value)}"], stand_in)["options"] == value


@pytest.mark.parametrize(
    "wrong",
    [
        "steps=20.0", "steps=1e3", "steps=", "steps=1_000", "steps=٣", "steps=9007199254740993", "density=nan",
        "density=inf", "density=0,5", "robust=1", "robust=yes", "keep=a, b", "keep={a: b}", "keep=[a", "keep=",
        "keep=" + "[" * 5000, "keep=&a [*a]", "keep=[!!binary aGk=]", "keep=[!!timestamp 2024-01-01]",
        "keep=[!!float .nan]", "keep=[!!python/object/apply:os.getcwd []]", "options=[a]", "options={a",
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(wrong: str, stand_in: Path) -> None:
    name, _, text = wrong.partition("=")
    (problem,) = problems(["erase=x", wrong], stand_in)
    assert problem.startswith(f"{name} is {text!r}; it must be ")


def test_all_problems_are_told_at_once(stand_in: Path) -> None:
    found = problems(["stpes=20", "steps=many", "robust=maybe", "keep", "=1", "steps=20"], stand_in)
    assert found == (
        "'keep' is no key=value",
        "'=1' is no key=value",
        "steps is given twice: 'many' and '20'",
        "unknown parameter 'stpes'; did you mean 'steps'? The pipeline takes: "
        "density, erase, keep, note, options, robust, steps",
        "steps is 'many'; it must be a whole number between -9007199254740992 and 9007199254740992 (most steps)",
        "robust is 'maybe'; it must be true or false",
        "erase is missing; give erase=VALUE (the concept to erase)",
    )


@pytest.mark.parametrize(
    "content",
    [
        "", "a: 1", "[a]", "just text", "import kfp\n\ndef f():\n    pass: 1", "a: 1\n---\nb: 1\n---\nc: 1",
        "sdkVersion: kfp-2.17.0", "!!python/object/apply:os.getcwd []", "\x00",
    ],
)  # fmt: skip
def test_a_file_that_is_no_compiled_pipeline_is_named_with_the_way_to_compile_one(content: str, tmp_path: Path) -> None:
    file = tmp_path / "spare.py"
    file.write_text(content)
    (problem,) = problems(["erase=x"], file)
    assert problem.startswith(f"{file} is no compiled pipeline (")
    assert problem.endswith("compile one with: kfp dsl compile --py PIPELINE.py --output spare.yaml")
    assert "\n" not in problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert problems([], tmp_path / "none.yaml")[0].startswith(f"{tmp_path / 'none.yaml'} is no compiled pipeline (No s")
    assert problems([], tmp_path)[0].startswith(f"{tmp_path} is no compiled pipeline (Is a directory)")


def test_every_parameter_of_our_own_pipeline_says_what_it_means() -> None:
    takes = read_definition(SPARE).parameters
    assert takes
    assert [name for name, spec in takes.items() if not spec.description] == []
