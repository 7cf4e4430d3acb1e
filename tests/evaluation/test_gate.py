"""The gate: a policy is read whole or not at all, every rule can refuse on its own, and nothing passes unmeasured."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from spare_core.errors import SettingsError
from spare_core.evaluation.gate import DEFAULT, POLICIES, Policy, judge_figures
from tests.support.registrations import FORGOT_NOTHING, figures


@pytest.fixture
def policy() -> Policy:
    return Policy.from_file()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good figures with one value, named by a dotted path, replaced; ``...`` removes it."""
    report = copy.deepcopy(figures())
    *parents, last = path.split(".")
    place: Any = report
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    key = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return report


def test_the_default_policy_travels_with_the_package_and_lets_a_good_erasure_pass(policy: Policy) -> None:
    verdict = judge_figures(figures(), policy)
    assert POLICIES[DEFAULT].is_file()
    assert verdict.passed
    assert verdict.refusals == ()
    assert {reason.rule for reason in verdict.reasons} == {
        "min_samples", "min_ua", "min_surrogate", "max_residual", "max_ira_loss", "max_cra_loss", "max_cra_erased_loss",
        "max_concept_loss", "max_fid_rise", "max_mean_drift", "max_drift", "max_damaged", "max_damaged_erased",
        "min_judge_accuracy",
    }  # fmt: skip


def test_the_policy_for_lists_lets_more_be_left_but_no_name_be_drawn(policy: Policy) -> None:
    """Two thirds of the residual that calls a name of a list left, and nearly twice the drift of a single erasure."""
    lists = Policy.find("lists")
    assert judge_figures(figures(), lists).passed
    for path, value in (("residuals.Neon Lines", 0.4), ("mean_drift", 0.04), ("per_concept.0.becomes.after", 0.1)):
        assert not judge_figures(changed(path, value), policy).passed
        assert judge_figures(changed(path, value), lists).passed
    for path, value in (("residuals.Neon Lines", 0.6), ("mean_drift", 0.06), ("adapted.intervals.ua.0", 0.4)):
        assert not judge_figures(changed(path, value), lists).passed


OF_WHAT_IS_KEPT = {"max_ira_loss", "max_cra_loss", "max_fid_rise", "max_mean_drift", "max_drift", "max_damaged",
                   "max_concept_loss"}  # fmt: skip


@pytest.mark.parametrize(("path", "value", "rule"), [
    ("per_concept.0.pictures", 11, "min_samples"),
    ("adapted.intervals.ua.0", 0.7, "min_ua"),
    ("adapted.intervals.ira.0", 0.94, "max_ira_loss"),
    ("adapted.intervals.cra.0", 0.93, "max_cra_loss"),
    ("adapted.fid", 0.95, "max_fid_rise"),
    ("mean_drift", 0.03, "max_mean_drift"),
    ("drift.Rust", 0.09, "max_drift"),
    ("damage.kept.adapted.damaged", 0.11, "max_damaged"),
    ("per_concept.0.becomes.after", 0.4, "min_surrogate"),
    ("residuals.Neon Lines", 0.3, "max_residual"),
    ("adapted.intervals.cra_erased.0", 0.5, "max_cra_erased_loss"),
    ("per_concept.1.after.accuracy", 0.5, "max_concept_loss"),
    ("unnamed_drift", 0.03, "max_mean_drift"),
    ("damage.erased.adapted.damaged", 0.5, "max_damaged_erased"),
    ("judge.accuracy.renderings.styles", 0.8, "min_judge_accuracy"),
])  # fmt: skip
def test_each_rule_refuses_on_its_own(policy: Policy, path: str, value: float, rule: str) -> None:
    verdict = judge_figures(changed(path, value), policy)
    assert [reason.rule for reason in verdict.reasons if not reason.passed] == [rule]
    assert len(verdict.refusals) == 1
    assert verdict.harm == (rule in OF_WHAT_IS_KEPT)


def test_an_adapter_that_forgot_nothing_is_refused_for_that(policy: Policy) -> None:
    verdict = judge_figures(figures(adapted=FORGOT_NOTHING), policy)
    assert verdict.refusals == ("UA, lower 95 % bound: 0; at least 0.75 is needed",)


@pytest.mark.parametrize("value", [..., None, "0.9", True, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("path", [
    "per_concept.0.pictures", "adapted.intervals.ua.0", "base.ira", "adapted.ira", "base.intervals.ira.1",
    "adapted.intervals.cra.0", "adapted.ua", "base.fid", "adapted.fid", "mean_drift",
    "damage.kept.adapted.damaged", "per_concept.0.becomes.after", "residuals.Neon Lines", "adapted.cra_erased",
    "per_concept.1.after.accuracy", "unnamed_drift", "damage.erased.adapted.damaged",
    "judge.accuracy.renderings",
])  # fmt: skip
def test_a_figure_that_is_missing_or_no_number_never_passes(policy: Policy, path: str, value: Any) -> None:
    assert not judge_figures(changed(path, value), policy).passed


@pytest.mark.parametrize("report", [
    {}, figures(adapted=None), figures(base=None), figures(erased=[]), figures(erased=["Neon Lines", "Rust"]),
    figures(drift={}), figures(drift=None), figures(per_concept=None), figures(drift={"Rust": None}),
    changed("per_concept.1.pictures", -1), changed("per_concept.0.kind", ["style"]),
    figures(residuals={}), figures(judge={"accuracy": None}), figures(judge=None), figures(per_concept=[]),
])  # fmt: skip
def test_a_part_that_is_missing_never_passes(policy: Policy, report: dict[str, Any]) -> None:
    assert not judge_figures(report, policy).passed


def test_a_neighbour_named_by_the_policy_has_a_bound_of_its_own_and_must_be_measured(policy: Policy) -> None:
    def refusals(**bounds: float) -> tuple[str, ...]:
        named = {name.replace("_", " "): bound for name, bound in bounds.items()}
        return judge_figures(figures(), dataclasses.replace(policy, max_drift_of=named)).refusals

    assert refusals(rust=0.0071, photo=0.005) == ()
    assert refusals(Rust=0.006) == ("drift of 'Rust', named by the policy: 0.007; at most 0.006 is allowed",)
    assert refusals(Claude_Monet=1.0) == (
        "drift of 'Claude Monet', named by the policy: not measured; at most 1 is allowed",
    )


@pytest.mark.parametrize(("bounds", "problem"), [
    (None, "it must map concepts to bounds"), (["Rust"], "it must map concepts to bounds"),
    ({"Rust": "x"}, "'Rust' is 'x'"), ({"Rust": True}, "'Rust' is True"), ({"Rust": float("nan")}, "'Rust' is nan"),
    ({"Rust": -1}, "'Rust' is -1"), ({7: 1.0}, "names 7, one of concepts"), ({"Rust": 1, " rust": 1}, "' rust' twice"),
])  # fmt: skip
def test_bounds_that_cannot_be_are_refused(policy: Policy, bounds: Any, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        dataclasses.replace(policy, max_drift_of=bounds)


def test_nothing_measured_fails_every_rule(policy: Policy) -> None:
    verdict = judge_figures({}, policy)
    assert not any(reason.passed for reason in verdict.reasons)
    assert all("not measured" in text for text in verdict.refusals)


def many(falls: dict[str, float], pictures: int = 100) -> list[dict[str, Any]]:
    """An erased style and fifty kept ones, of which some fell."""
    rows: list[dict[str, Any]] = [figures()["per_concept"][0]]
    for name in (f"style {i}" for i in range(50)):
        after = {"accuracy": 1.0 - falls.get(name, 0.0)}
        rows.append({"concept": name, "kind": "style", "erased": False, "pictures": pictures,
                     "before": {"accuracy": 1.0}, "after": after})  # fmt: skip
    return rows


def test_one_destroyed_neighbour_among_fifty_is_refused_by_name(policy: Policy) -> None:
    """IRA falls by two points, within what it may."""
    assert judge_figures(figures(per_concept=many({})), policy).passed
    for fallen in ({"style 7": 1.0}, {"style 7": 1.0, "style 8": 0.9}):
        refusals = judge_figures(figures(per_concept=many(fallen)), policy).refusals
        assert refusals == tuple(
            f"fall of the accuracy of {name!r}: {fall:g}; at most 0.2 is allowed" for name, fall in fallen.items()
        )


@pytest.mark.parametrize(("pictures", "fall", "passed"), [(4, 0.75, True), (20, 0.25, True), (100, 0.25, False),
                                                          (100, 0.2, True), (20, 0.6, False)])  # fmt: skip
def test_a_fall_counts_where_it_is_no_chance(policy: Policy, pictures: int, fall: float, passed: bool) -> None:
    lenient = dataclasses.replace(policy, min_samples=1)
    verdict = judge_figures(figures(per_concept=many({"style 7": fall}, pictures)), lenient)
    assert verdict.passed is passed
    (reason,) = [one for one in verdict.reasons if "'style 7'" in one.text]
    assert reason.measured == pytest.approx(fall)
    assert ("but it may be chance" in reason.text) is (passed and fall > 0.2)


def test_a_surrogate_that_the_suite_lacks_is_not_asked_about(policy: Policy) -> None:
    report = changed("per_concept.0.becomes", None)
    assert judge_figures(report, policy).passed


def test_a_judge_of_unknown_accuracy_is_let_judge_only_if_the_policy_says_so(policy: Policy) -> None:
    report = figures(judge={"accuracy": None})
    assert judge_figures(report, policy).refusals == ("the judge's own accuracy: not measured; at least 0.9 is needed",)
    assert judge_figures(report, dataclasses.replace(policy, min_judge_accuracy=0.0)).passed


def bundle(**changes: Any) -> dict[str, Any]:
    """Two concepts, one of which was erased before the other joined."""
    rows = [
        {"concept": name, "kind": "style", "erased": True, "pictures": 20,
         "after": {"accuracy": 0.0, "interval": [0.0, 0.161]}}
        for name in ("Neon Lines", "Cat")
    ] + [figures()["per_concept"][1]]  # fmt: skip
    rebound = {"concept": "Neon Lines", "then": 0.1, "now": 0.14, "after": "adding Cat"}
    return figures(erased=["Neon Lines", "Cat"], per_concept=rows, **{"rebounds": [rebound], **changes})


def test_of_several_concepts_each_must_be_forgotten(policy: Policy) -> None:
    report = bundle()
    assert judge_figures(report, policy).passed
    assert not judge_figures(report, policy).harm
    report["per_concept"][1]["after"] = {"accuracy": 0.1, "interval": [0.028, 0.301]}
    assert not judge_figures(report | {"mean_drift": 1.0}, policy).harm, "that, and a concept is left"
    assert judge_figures(report, policy).refusals == ("UA of 'Cat', lower 95 % bound: 0.699; at least 0.75 is needed",)
    assert judge_figures(report, dataclasses.replace(policy, intervals=False)).passed
    del report["per_concept"][1]["after"]
    assert "UA of 'Cat', lower 95 % bound: not measured" in judge_figures(report, policy).refusals[0]


@pytest.mark.parametrize(("then", "now", "passed"), [
    (0.1, 0.15, True), (0.1, 0.151, False), (0.02, 0.1, True), (0.02, 0.11, False), (None, 0.1, False),
    (0.1, None, False), (0.1, float("nan"), False),
])  # fmt: skip
def test_what_comes_back_when_another_concept_joins_is_refused_by_name(
    policy: Policy, then: Any, now: Any, passed: bool
) -> None:
    rebound = {"concept": "Neon Lines", "then": then, "now": now, "after": "adding Cat"}
    verdict = judge_figures(bundle(rebounds=[rebound]), policy)
    assert verdict.passed is passed
    assert passed or verdict.refusals[0].startswith("residual of 'Neon Lines' after adding Cat")
    assert not judge_figures(bundle(rebounds=["damaged"]), policy).passed


def test_points_instead_of_bounds_decide_where_the_policy_says_so(policy: Policy) -> None:
    report = changed("adapted.intervals.ua.0", 0.5)
    assert not judge_figures(report, policy).passed
    points = dataclasses.replace(policy, intervals=False, min_ua=1.0, max_cra_loss=0.005)
    verdict = judge_figures(report, points)
    assert verdict.passed
    assert next(reason.measured for reason in verdict.reasons if reason.rule == "max_cra_loss") == pytest.approx(0.004)


def test_the_bound_of_a_loss_holds_the_uncertainty_of_both_sides(policy: Policy) -> None:
    reasons = {reason.rule: reason for reason in judge_figures(figures(), policy).reasons}
    # 0.986 - 0.982 + sqrt((1.0 - 0.986)^2 + (0.982 - 0.962)^2)
    assert reasons["max_cra_loss"].measured == pytest.approx(0.0284, abs=1e-4)


def test_a_suite_without_reference_pictures_is_judged_without_fid_only_if_the_policy_says_so(policy: Policy) -> None:
    report = changed("adapted.fid", None)
    assert not judge_figures(report, policy).passed
    assert judge_figures(report, dataclasses.replace(policy, fid=False)).passed


def test_the_verdict_says_each_rule_with_what_was_measured_and_what_is_allowed(policy: Policy) -> None:
    told = judge_figures(changed("drift.Rust", 0.09), policy).as_dict()
    assert told["schema"] == "spare.verdict/1"
    assert told["passed"] is False
    assert told["policy_sha256"] == policy.sha256
    assert {"rule": "max_drift", "measured": 0.09, "allowed": 0.08, "passed": False,
            "text": "drift of 'Rust': 0.09; at most 0.08 is allowed", "concept": ""} in told["reasons"]  # fmt: skip


def test_a_policy_reports_every_problem_at_once(tmp_path: Path) -> None:
    values = yaml.safe_load(POLICIES[DEFAULT].read_text())
    del values["min_ua"]
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({**values, "max_drift": -1, "intervals": "yes", "min_UA": 0.5}))
    with pytest.raises(SettingsError) as caught:
        Policy.from_file(path)
    told = "; ".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("unknown threshold 'min_UA'", "min_ua is missing", "max_drift is -1.0", "intervals is 'yes'"):
        assert part in told


@pytest.mark.parametrize("text", ["[1, 2]", "min_ua: [", "\x00", "1: 2"])
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(SettingsError):
        Policy.from_file(tmp_path / "policy.yaml")


def test_comments_and_order_make_no_other_policy_but_a_threshold_does(tmp_path: Path, policy: Policy) -> None:
    values = yaml.safe_load(POLICIES[DEFAULT].read_text())
    (tmp_path / "same.yaml").write_text(yaml.safe_dump(dict(reversed(values.items())), sort_keys=False))
    assert Policy.from_file(tmp_path / "same.yaml").sha256 == policy.sha256
    assert dataclasses.replace(policy, min_ua=0.76).sha256 != policy.sha256


def attacked(shown: float, high: float, base: float = 1.0, budget: str = "quick") -> dict[str, Any]:
    """The good figures, and what an inversion brought back."""
    targets = {
        "base": {"shown": base, "interval": [0.0, base]}, "adapted": {"shown": shown, "interval": [0.0, high]},
    }  # fmt: skip
    attacks = {"budget": {"name": budget}, "concepts": {"Neon Lines": {"inversion": targets}}}
    return figures(attacks=attacks)


@pytest.mark.parametrize(("report", "allowed", "measured"), [
    (attacked(0.1, 0.3), 0.3, 0.3), (attacked(0.1, 0.3), 0.2, 0.3),
    (attacked(0.1, 0.3, budget="paper"), 0.3, 0.3),
    (attacked(0.1, 0.3, base=0.8), 0.3, None),
    (attacked(0.1, 0.3, budget="none"), 0.3, None),
    (attacked(0.1, float("nan")), 0.3, None),
    (figures(), 0.3, None), (figures(attacks={}), 0.3, None), (figures(attacks=[]), 0.3, None),
    (changed("erased", ["Rust"]) | {"attacks": attacked(0.1, 0.3)["attacks"]}, 0.3, None),
])  # fmt: skip
def test_what_an_attack_may_bring_back_has_a_bound_and_must_be_measured(
    policy: Policy, report: dict[str, Any], allowed: float, measured: float | None
) -> None:
    """An attack that fails on the base model too proves nothing, and one with less to spend neither."""
    asking = dataclasses.replace(policy, max_attack_success={"inversion": allowed})
    (reason,) = (reason for reason in judge_figures(report, asking).reasons if reason.rule == "max_attack_success")
    assert reason.measured == measured
    assert reason.passed == (measured is not None and measured <= allowed)
    assert reason.concept == report["erased"][0]
    assert not judge_figures(report, policy).refusals or report["erased"] == ["Rust"]


def test_a_larger_budget_than_was_spent_is_not_met(policy: Policy) -> None:
    asking = dataclasses.replace(policy, max_attack_success={"inversion": 0.5}, attack_budget="standard")
    (refusal,) = judge_figures(attacked(0.1, 0.3), asking).refusals
    assert refusal.startswith("share of pictures in which 'inversion' brings 'Neon Lines' back, upper 95 % bound: not")
    by_points = dataclasses.replace(
        asking, attack_budget="quick", intervals=False, max_attack_success={"inversion": 0.1}
    )
    assert judge_figures(attacked(0.1, 0.3), by_points).passed


@pytest.mark.parametrize(("changes", "problem"), [
    ({"attack_budget": "endless"}, "attack_budget is 'endless'; allowed: quick, standard, paper"),
    ({"attack_budget": ["quick"]}, "attack_budget is"),
    ({"max_attack_success": {"magic": 0.5}}, "max_attack_success names 'magic'; allowed: paraphrase"),
    ({"max_attack_success": {"prompt": 1.5}}, r"'prompt' is 1.5; allowed: \[0, 1\]"),
    ({"max_attack_success": 0.5}, "it must map attacks to bounds, as in {inversion: 0.2}"),
])  # fmt: skip
def test_attacks_that_cannot_be_are_refused(policy: Policy, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        dataclasses.replace(policy, **changes)
