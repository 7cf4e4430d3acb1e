"""Settings are checked once, before any work, and every problem is told at once."""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spare_core.errors import InputError, SettingsError
from spare_core.method.settings import METHODS, EraseSettings, preset
from spare_core.store.fetching import read_yaml_mapping

FIELDS = {field.name: field for field in dataclasses.fields(EraseSettings)}
HINTS = typing.get_type_hints(EraseSettings) | {"rank": int, "lr": float, "alpha": float}
"""Of what is a number or a word, here the number; see the tests of "auto"."""
BOUNDED = [name for name, field in FIELDS.items() if field.metadata["high"] is not None]
CONDITIONAL = {name: field.metadata["only"] for name, field in FIELDS.items() if field.metadata["only"]}


def with_its_condition(name: str, value: Any) -> dict[str, Any]:
    """``name`` where it has a meaning."""
    only = CONDITIONAL.get(name)
    rate = {"lr": 0.004} if only and only.setting == "adversary" else {}
    return {name: value, **({only.setting: only.values[0]} if only else {}), **rate}


def test_the_defaults_are_allowed() -> None:
    assert EraseSettings.from_mapping(EraseSettings().as_dict()) == EraseSettings()


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_says_what_it_means(name: str) -> None:
    assert FIELDS[name].metadata["meaning"]


def test_each_number_has_bounds() -> None:
    assert [name for name, hint in HINTS.items() if hint in (int, float)] == BOUNDED


@pytest.mark.parametrize("name", BOUNDED)
def test_a_number_is_allowed_up_to_its_bounds_and_not_beyond(name: str) -> None:
    low, high, kind = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"], HINTS[name]
    EraseSettings(**with_its_condition(name, kind(high)))
    refused = [kind(high) + 1, kind(low) - 1]
    if FIELDS[name].metadata["open_low"]:
        refused.append(kind(low))
    else:
        EraseSettings(**with_its_condition(name, kind(low)))
    for value in refused:
        with pytest.raises(SettingsError, match=name):
            EraseSettings(**{name: value})


@given(st.sets(st.sampled_from(BOUNDED), min_size=1))
def test_every_problem_is_told_at_once(names: set[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        EraseSettings(**{name: HINTS[name](FIELDS[name].metadata["high"]) * 2 for name in names})
    assert {problem.split()[0] for problem in caught.value.problems} == names


def test_a_message_names_the_value_what_is_allowed_and_what_it_is_for() -> None:
    with pytest.raises(SettingsError, match=r"density is 1\.5; allowed: \(0, 1\] \(share of the target layers"):
        EraseSettings(density=1.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="gamma"):
        EraseSettings(gamma=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", "8"),
        ("rank", 8.0),
        ("rank", True),
        ("rank", None),
        ("lr", "fast"),
        ("contrast", 1),
        ("contrast", "yes"),
    ],
)
def test_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is .*must be of type {HINTS[name].__name__}"):
        EraseSettings(**{name: value})


def test_the_rate_is_a_number_or_to_be_found() -> None:
    assert EraseSettings(lr="auto") == EraseSettings()
    assert EraseSettings.from_mapping({"lr": "2e-3"}).lr == 0.002
    with pytest.raises(SettingsError, match=r"lr is 'automatic'; it must be of type float or auto \(peak"):
        EraseSettings(lr="automatic")  # type: ignore[arg-type]


def test_a_whole_number_serves_as_a_fraction() -> None:
    alpha = EraseSettings(alpha=4).alpha
    assert alpha == 4.0
    assert type(alpha) is float


def test_the_rank_follows_the_names_unless_it_is_given() -> None:
    chosen = EraseSettings()
    assert (chosen.rank, chosen.lora_rank) == ("auto", 8)
    assert [chosen.for_names(count).rank for count in (1, 8, 9, 100)] == [8, 8, 16, 104]
    assert [chosen.for_names(count, 32).rank for count in (1, 33)] == [32, 40]
    given = EraseSettings(rank=12)
    assert given.for_names(100) == given


def test_alpha_follows_the_rank_unless_it_is_given() -> None:
    assert EraseSettings(rank=32).lora_alpha == 32.0
    assert EraseSettings(rank=32, alpha=8.0).lora_alpha == 8.0


@pytest.mark.parametrize("name", [name for name, hint in HINTS.items() if typing.get_origin(hint) is Literal])
@pytest.mark.parametrize("value", ["", "Channel", None, 1, []])
def test_a_choice_that_is_not_offered_is_refused_with_the_offer(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"{name} is .*allowed: {', '.join(typing.get_args(HINTS[name]))}"):
        EraseSettings(**{name: value})


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_setting_that_would_be_ignored_is_refused(name: str) -> None:
    """With what to do; its default, which a pipeline passes on, is not."""
    only, default = CONDITIONAL[name], FIELDS[name].default
    given = {bool: False, float: 0.6, str: "denoise", int: 7}[type(default)]
    others = [value for value in typing.get_args(HINTS[only.setting]) or (True, False) if value not in only.values]
    for other in others:
        EraseSettings(**{name: default, only.setting: other})
        with pytest.raises(SettingsError) as caught:
            EraseSettings(**{name: given, only.setting: other})
        assert list(caught.value.problems) == [
            f"{name} is {given}, but means nothing where {only.setting} is {other!r}; leave it out, or set "
            f"{only.setting} to {only.allowed}"
        ]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_set_of_values_and_others_win(method: str) -> None:
    settings = EraseSettings.from_mapping({"method": method, "steps": 7})
    assert settings.steps == 7
    assert settings.closed_form is (method != "paper")
    values = {**preset(method), "steps": 7}
    assert values.items() <= settings.as_dict().items()
    assert EraseSettings.from_mapping(settings.as_dict()) == settings, "what is recorded needs no method's name"


def test_the_first_method_is_what_the_defaults_are() -> None:
    assert EraseSettings.from_mapping({"method": METHODS[0]}) == EraseSettings()
    with pytest.raises(SettingsError, match=r"method is 'magic'; allowed: solve, paper, both"):
        EraseSettings.from_mapping({"method": "magic"})


def test_the_papers_method_is_the_papers() -> None:
    """Saliency of the loss against the noise, a mask, self-distillation at sampled timesteps; nothing is solved. Only
    the contrast is ours."""
    settings = EraseSettings.from_mapping({"method": "paper"})
    assert (settings.saliency, settings.contrast, settings.closed_form) == ("denoise", True, False)
    assert settings.mask in ("module", "channel", "weight") and settings.timesteps == "gap"
    assert settings.steps >= 5 * settings.measure_every, "long enough to see that it falls no more"


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EraseSettings().rank = 4  # type: ignore[misc]


def test_settings_survive_being_written_down() -> None:
    settings = EraseSettings(mask="weight", density=0.1, lr=1e-3, low_memory=True)
    assert EraseSettings.from_mapping(settings.as_dict()) == settings


def test_unknown_names_are_told_together_with_bad_values() -> None:
    with pytest.raises(SettingsError) as caught:
        EraseSettings.from_mapping({"rnak": 8, "rank": 0, "stpes": 1, "density": 2.0})
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "unknown setting 'rnak'",
        "unknown setting 'stpes'",
        "density is 2.0",
        "rank is 0",
    ]


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("rank: 4\nmask: module\nlr: 0.001\n")
    settings = EraseSettings.from_file(path, rank=16)
    assert (settings.rank, settings.mask, settings.lr) == (16, "module", 0.001)
    assert settings.steps == EraseSettings().steps


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing yet\n")
    assert EraseSettings.from_file(path) == EraseSettings()


@pytest.mark.parametrize(
    "content",
    [b"- rank\n- 4\n", b"rank", b"1: 2\n", b"rank: [", b"\xff\xfe\x00", b"rank: !!python/object:os.system {}"],
)
def test_a_file_that_holds_no_settings_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"settings\.yaml"):
        read_yaml_mapping(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        read_yaml_mapping(tmp_path / name)


def test_bad_settings_are_bad_input() -> None:
    assert issubclass(SettingsError, InputError)
    assert SettingsError(["a", "b"]).exit_code == 2


def test_against_an_adversary_a_rate_is_given() -> None:
    """Trials measure residual and drift; from a solution the lowest rate changes these least."""
    with pytest.raises(SettingsError, match=r"try lr 0\.004"):
        EraseSettings(adversary="vectors")
    with pytest.raises(SettingsError, match=r"adversary_rate is 1\.0, but means nothing where adversary is 'none'"):
        EraseSettings(adversary_rate=1.0)
    assert EraseSettings.from_mapping({"method": "robust"}).adversary == "vectors"
