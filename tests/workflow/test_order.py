"""A run's parameters are checked as a whole, and an order says no more than what decides the result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from spare_core.concepts.lists import build_erasures
from spare_core.errors import InputError, SettingsError
from spare_core.evaluation.gate import POLICIES, Policy
from spare_core.workflow import freshness
from spare_core.workflow.order import Champion, Order, check_order, request_id_of

GIVEN: dict[str, Any] = {
    "model": "canvas", "erase": "neon lines", "surrogate": "Photo", "kind": "", "keep": [], "images": "",
    "template": "", "contexts": [], "settings": {}, "suite": "", "seeds": 0, "policy": "default", "name": "",
    "promote": True, "request_id": "",
}  # fmt: skip


def problems(**changes: Any) -> tuple[str, ...]:
    """What is said of parameters."""
    with pytest.raises(SettingsError) as caught:
        check_order({**GIVEN, **changes})
    return caught.value.problems


def test_defaults_of_the_model_are_filled_in() -> None:
    order, policy = check_order(GIVEN)
    assert order.request.erasures.parts[0].concept == "Neon Lines"
    assert "Rust" in order.request.erasures.parts[0].keep
    assert order.suite == "canvas"
    assert policy == Policy.from_file()


def test_numbers_that_kfp_made_doubles_are_whole_again() -> None:
    order, _ = check_order({**GIVEN, "settings": {"steps": 30.0, "rank": 4.0, "lr": 0.001, "floor": 1.0}, "seeds": 2.0})
    assert (order.request.settings.steps, order.request.settings.rank, order.seeds) == (30, 4, 2)
    assert (order.request.settings.lr, order.request.settings.floor) == (0.001, 1.0)


def test_an_order_survives_json_and_repeats() -> None:
    order, _ = check_order(GIVEN)
    assert Order.from_json(order.to_json()) == order
    assert check_order(GIVEN)[0].to_json() == order.to_json()


@pytest.mark.parametrize(("given", "named", "found"), [
    ("", "", "default"), ("", "lists", "lists"), ("lists", "", "lists"), ("default", "lists", "default"),
])  # fmt: skip
def test_a_policy_is_that_of_the_environment_where_none_is_given(
    given: str, named: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nightly batch is given none; a cluster's own policy is that of promotions by hand."""
    monkeypatch.setenv("SPARE_POLICY", named)
    _, policy = check_order({**GIVEN, "policy": given})
    assert policy == Policy.find(found)


def test_what_its_policy_asks_to_be_attacked_is_part_of_it(tmp_path: Path) -> None:
    """So a run does not take an evaluation in which it was not."""
    policies = []
    for bound in (0.3, 0.2):
        values = yaml.safe_load(POLICIES["default"].read_text())
        values |= {"max_attack_success": {"prompt": bound, "inversion": 0.5}, "attack_budget": "standard"}
        policies.append(tmp_path / f"{bound}.yaml")
        policies[-1].write_text(yaml.safe_dump(values))
    orders = [check_order({**GIVEN, "policy": str(path)})[0] for path in policies]
    assert (orders[0].attack_budget, orders[0].attacks) == ("standard", ("prompt", "inversion"))
    assert Order.from_json(orders[0].to_json()) == orders[0]
    assert orders[0].to_json() == orders[1].to_json() != check_order(GIVEN)[0].to_json()
    assert (check_order(GIVEN)[0].attack_budget, check_order(GIVEN)[0].attacks) == ("", ())


@pytest.mark.parametrize("changes", [{"policy": ""}, {"promote": False}, {"name": "spare.canvas.own"}])
def test_what_becomes_of_a_result_is_no_part_of_the_order(changes: dict[str, Any]) -> None:
    """So a run that is asked the same under another policy takes what is there."""
    assert check_order({**GIVEN, **changes})[0].to_json() == check_order(GIVEN)[0].to_json()


@pytest.mark.parametrize(
    "changes", [{"erase": "Rust"}, {"settings": {"seed": 1}}, {"seeds": 1}, {"keep": ["Rust"]}, {"suite": "own.yaml"}]
)
def test_what_decides_the_result_is(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("extends: canvas\nsteps: 3\n")
    assert check_order({**GIVEN, **changes})[0].to_json() != check_order(GIVEN)[0].to_json()


def test_results_are_taken_within_a_period_and_by_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """KFP's cache knows an image by its name and forgets nothing; the files are deleted after a month."""
    order, _ = check_order(GIVEN)
    monkeypatch.setenv("SPARE_REUSE_DAYS", "14")
    now = 1_700_000_000 // (14 * 86_400) * 14 * 86_400
    texts = []
    for days in (0, 13.9, 14, 27.9, 28):
        monkeypatch.setattr(freshness.time, "time", lambda days=days: now + days * 86_400)
        texts.append(order.to_json())
    assert [texts.index(text) for text in texts] == [0, 0, 2, 2, 4]
    assert Order.from_json(texts[0]) == order
    monkeypatch.setattr("spare_core.workflow.order.code_digest", lambda: "0" * 64)
    assert order.to_json() != texts[-1]


@pytest.mark.parametrize("days", ["0", "a fortnight", "1.5", "-3", "9999"])
def test_days_that_are_none_are_refused(days: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order, _ = check_order(GIVEN)
    monkeypatch.setenv("SPARE_REUSE_DAYS", days)
    with pytest.raises(InputError, match="must be a whole number of days from 1 to 3650"):
        order.to_json()


def test_a_suite_that_changed_since_is_refused(tmp_path: Path) -> None:
    suite = tmp_path / "own.yaml"
    suite.write_text("extends: canvas\nsteps: 3\n")
    order, _ = check_order({**GIVEN, "suite": str(suite)})
    assert order.chosen_suite().steps == 3
    suite.write_text("extends: canvas\nsteps: 4\n")
    with pytest.raises(SettingsError, match="was changed since the run began"):
        order.chosen_suite()


def test_everything_wrong_is_told_at_once() -> None:
    found = problems(
        model="nowhere", keep=["NEON LINES", "Rust"], contexts="a cat", seeds=-1, policy="none.yaml", promote="yes",
        settings={"stpes": 3.0, "seed": -1.0, "rank": "four"}, images="none", suite="none.yaml", kind="colour",
    )  # fmt: skip
    reported = "\n".join(found)
    for part in (
        "contexts is 'a cat'; it must be a list of texts", "seeds is -1", "promote is 'yes'; it must be true or false",
        "unknown setting 'stpes'", "seed is -1", "rank is 'four'", "is both to be erased and to be kept",
        "got 'colour'", "there is no model 'nowhere'", "none is not a folder", "there is no suite 'none.yaml'",
        "none.yaml",
    ):  # fmt: skip
        assert part in reported
    assert all("\n" not in problem for problem in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"erase": " "}, "erase is empty"),
        ({"erase": 7}, "erase is 7; it must be text"),
        ({"erase": "Neon Light"}, "nearest: 'Neon Lines'"),
        ({"keep": ["Rust", 3]}, r"keep is \['Rust', 3\]; it must be a list of texts"),
        ({"settings": "steps"}, "settings is 'steps'; it must be a mapping"),
        ({"seeds": 1.5}, "seeds is 1.5; it must be a whole number"),
        ({"seeds": 9}, "first_seeds is 9"),
        ({"suite": "unlearncanvas"}, "suite 'unlearncanvas' has no judge"),
        ({"request_id": "a\nb"}, "request_id must be one printable line"),
    ],
)
def test_each_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    assert any(re.search(message, problem) for problem in problems(**changes))


def test_a_model_of_ones_own_needs_a_kind_and_a_suite(sd1_dir: Path) -> None:
    reported = "; ".join(problems(model=str(sd1_dir), keep=["Neon Lines"]))
    assert "say what 'neon lines' is" in reported
    assert "is both to be erased and to be kept" in reported
    assert "suite is empty; only canvas, canvas160 bring their own" in reported


BUNDLE: dict[str, Any] = {
    "model": "canvas", "requests": [{"concept": "cat", "surrogate": "Dog"}], "without": [], "grow": True,
    **{name: GIVEN[name] for name in ("settings", "suite", "seeds", "policy", "name", "promote", "request_id")},
}  # fmt: skip


def champion(*rows: tuple[str, str], rank: int = 8) -> Champion:
    """A bundle of these concepts that is champion."""
    erasures = build_erasures("canvas", [{"concept": concept, "surrogate": surrogate} for concept, surrogate in rows])
    return Champion(3, "e" * 64, {"requests": [one.as_dict() for one in erasures], "settings": {"rank": rank}})


def bundled(there: Champion | None = None, **changes: Any) -> Order:
    """The order of a bundle."""
    return check_order({**BUNDLE, **changes}, champion_of=lambda base: there)[0]


def erased(order: Order) -> list[str]:
    """By name."""
    return [one.concept for one in order.request.erasures]


def test_a_bundle_of_one_is_a_bundle() -> None:
    order = bundled()
    assert erased(order) == ["Cat"]
    assert (order.request.erasures.bundle, order.champion, order.evidence) == (True, 0, "")
    settings = order.request.settings
    assert (settings.rank, settings.lora_alpha) == (32, 32.0), "room for those to come"
    assert bundled(champion(("Rust", "Photo"), rank=64)).request.settings.rank == 64
    assert bundled(champion(("Rust", "Photo"), rank=64), settings={"rank": "auto"}).request.settings.rank == 64
    many = {"concept": "Cat", "surrogate": "Dog", "aliases": [f"cat {i}" for i in range(40)]}
    assert bundled(requests=[many]).request.settings.rank == 48
    assert bundled(settings={"rank": 4.0}).request.settings.rank == 4
    assert Order.from_json(order.to_json()) == order
    assert request_id_of(BUNDLE).startswith("bundle ")


def test_a_bundle_grows_from_the_champion_and_shrinks() -> None:
    """The same asked again is one request; what is withdrawn may be asked for with another surrogate."""
    there = champion(("Neon Lines", "Photo"), ("Cat", "Dog"))
    grown = bundled(there, requests=[{"concept": "Rust", "surrogate": "Photo"}, {"concept": "Cat", "surrogate": "Dog"}])
    assert erased(grown) == ["Neon Lines", "Rust", "Cat"]
    assert (grown.champion, grown.evidence) == (3, "e" * 64)
    assert erased(bundled(there, requests=[], without=["neon lines"])) == ["Cat"]
    two = champion(("Rust", "Photo"), ("Winter", "Photo"))
    (left,) = bundled(two, requests=[], without=["winter"]).request.erasures
    assert "Winter" in left.keep, "what was given back must be drawn again"
    (again,) = bundled(two, requests=[{"concept": "Rust", "surrogate": "Photo"}], without=["winter"]).request.erasures
    assert "Winter" in again.keep, "also where what stays is asked for again"
    changed = bundled(there, requests=[{"concept": "Cat", "surrogate": "Bear"}], without=["Cat"])
    assert [one.surrogate for one in changed.request.erasures] == ["Photo", "Bear"]
    alone = bundled(there, grow=False)
    assert (erased(alone), alone.champion) == (["Cat"], 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": []}, "nothing to erase"),
        ({"requests": [], "without": ["Cat"]}, "without names 'Cat', but there is no champion"),
        ({"requests": "Cat"}, "requests is 'Cat'; it must be a list of mappings"),
        ({"requests": [{"concept": "Cat"}, {"concept": "Fisch"}]}, "request 2: surrogate is missing"),
        ({"without": ["Bear"]}, "'Bear' is not erased there, but Rust"),
        ({"grow": "yes"}, "grow is 'yes'; it must be true or false"),
        ({"settings": {"rank": 16.0}}, "rank is 16, but the champion, version 3, has 8"),
        (
            {"requests": [{"concept": "Cat", "surrogate": "Dog", "aliases": list("abcdefgh")}]},
            "10 names are to be erased, but the champion, version 3, has rank 8, which holds",
        ),
        ({"requests": [{"concept": "Rust", "surrogate": "Winter"}]}, "'Rust' would be erased twice"),
        ({"requests": [{"concept": "Winter", "surrogate": "Photo", "keep": ["Rust"]}]}, "keeps 'Rust', which another"),
        ({"requests": [{"concept": "Photo", "surrogate": "Rust"}]}, "in a circle: Rust -> Photo -> Rust"),
    ],
)
def test_a_bundle_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    there = None if changes.get("requests") == [] else champion(("Rust", "Photo"))
    with pytest.raises(SettingsError) as caught:
        bundled(there, **changes)
    assert any(message in problem for problem in caught.value.problems), caught.value.problems


def test_the_same_parameters_are_the_same_request() -> None:
    assert request_id_of(GIVEN) == request_id_of({**GIVEN, "policy": "mine.yaml", "promote": False})
    assert request_id_of(GIVEN) != request_id_of({**GIVEN, "surrogate": "Rust"})
    assert request_id_of({**GIVEN, "request_id": " T-7 "}) == "T-7"
    assert request_id_of({**GIVEN, "erase": ["a", "list"]})


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": "spare.order/1"}'])
def test_a_text_that_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no order of a pipeline's first task"):
        Order.from_json(text)


def test_an_order_of_another_schema_is_refused() -> None:
    values = json.loads(check_order(GIVEN)[0].to_json())
    with pytest.raises(InputError, match=r"schema 'spare\.order/9'"):
        Order.from_json(json.dumps({**values, "schema": "spare.order/9"}))
