"""The gate: whether an adapter's figures meet a policy. Figures in, verdict out; no model, no registry.

A figure that is missing fails its rule: what was not measured cannot pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from spare_core.checks import field_problems
from spare_core.concepts.names import normalise
from spare_core.errors import GateRefused, SettingsError
from spare_core.evaluation.attacked import ATTACKS, BUDGETS
from spare_core.evaluation.gate_figures import Figures
from spare_core.store.fetching import read_yaml_mapping

DEFAULT: Final = "default"
"""The name of the policy that is used where none is given."""
POLICIES: Final = {file.stem: file for file in sorted((Path(__file__).parent / "policies").glob("*.yaml"))}
"""The policies that come with SPARE, by name."""
SCHEMA: Final = "spare.verdict/1"
_LEVEL: Final = 0.05
"""How often all falls of kept concepts together may be called real though they are chance."""


def _limit(meaning: str, low: float | None = None, high: float | None = None) -> Any:
    """A field without a default, with its meaning and the range it is checked against."""
    return field(metadata={"meaning": meaning, "low": low, "high": high, "open_low": False})


def _unranged(meaning: str) -> Any:
    """A field that a function of its own checks."""
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True)
class Policy:
    """Thresholds, fractions not percent; ``policies/default.yaml`` gives reasons for each.

    Raises:
        SettingsError: at construction, with every value that is out of range.
    """

    intervals: bool = _limit("judge by the pessimistic end of the 95 % interval")
    min_samples: int = _limit("fewest pictures of each erased concept", 1, 10_000_000)
    min_ua: float = _limit("least UA", 0.0, 1.0)
    min_surrogate: float = _limit("least share of an erased concept's pictures that show its surrogate", 0.0, 1.0)
    max_residual: float = _limit("largest residual of any erased concept", 0.0, 1e6)
    max_ira_loss: float = _limit("largest fall of IRA", 0.0, 1.0)
    max_cra_loss: float = _limit("largest fall of CRA", 0.0, 1.0)
    max_cra_erased_loss: float = _limit("largest fall of CRA on the pictures of the erased concepts", 0.0, 1.0)
    max_concept_loss: float = _limit("largest fall of accuracy of any one kept concept that is no chance", 0.0, 1.0)
    fid: bool = _limit("FID is judged")
    max_fid_rise: float = _limit("largest relative rise of FID", 0.0, 1e6)
    max_mean_drift: float = _limit("largest mean drift of the kept concepts", 0.0, 1e6)
    max_drift: float = _limit("largest drift of any one kept concept", 0.0, 1e6)
    max_drift_of: Mapping[str, float] = _unranged("largest drift of concepts by name; each must be measured")
    max_damaged: float = _limit("largest share of the kept pictures that look damaged", 0.0, 1.0)
    max_damaged_erased: float = _limit("the same of the erased concepts' pictures", 0.0, 1.0)
    min_judge_accuracy: float = _limit("least accuracy of the judge on pictures whose content is known", 0.0, 1.0)
    max_rebound: float = _limit("largest residual of a concept erased earlier, as a multiple of its first", 1.0, 1e6)
    rebound_from: float = _limit("residual up to which nothing counts as a rebound", 0.0, 1.0)
    attack_budget: str = _unranged("what an attacker may spend")
    max_attack_success: Mapping[str, float] = _unranged("largest share of pictures that each attack brings back")

    def __post_init__(self) -> None:
        problems = [
            *field_problems(self),
            *_mapping_problems("max_drift_of", self.max_drift_of, 1e6, "concepts", "{Photo: 0.02}"),
            *_mapping_problems("max_attack_success", self.max_attack_success, 1.0, "attacks", "{inversion: 0.2}"),
            *_attack_problems(self.attack_budget, self.max_attack_success),
        ]
        if problems:
            raise SettingsError(problems)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """The inverse of :meth:`to_json`.

        Raises:
            SettingsError: if a value is out of range.
        """
        return cls(**json.loads(text))

    @classmethod
    def find(cls, source: str) -> Policy:
        """A policy that comes with SPARE, by its name (nothing: ``default``), or that of a YAML file here or in S3.

        Raises:
            SettingsError: see :meth:`from_file`.
            StoreError: if it cannot be fetched.
        """
        return cls.from_file(POLICIES.get(source or DEFAULT, source))

    @classmethod
    def from_file(cls, source: str | Path = POLICIES[DEFAULT]) -> Policy:
        """A policy from a YAML mapping, here or in S3, that names every threshold.

        Raises:
            SettingsError: with all that is wrong: unreadable, unknown, missing, of the wrong type, out of range.
        """
        values = read_yaml_mapping(source)
        known = {f.name: f.metadata["meaning"] for f in fields(cls)}
        problems = [f"unknown threshold {name!r}; known: {', '.join(known)}" for name in values if name not in known]
        problems += [f"{name} is missing ({meaning})" for name, meaning in known.items() if name not in values]
        # Those that are missing are filled in only to have the others checked as well.
        complete = {**_CHECKED_WITH, **{name: value for name, value in values.items() if name in known}}
        try:
            policy = cls(**complete)
        except SettingsError as error:
            problems += error.problems
        if problems:
            raise SettingsError([f"{source}: {problem}" for problem in problems])
        return policy

    @property
    def sha256(self) -> str:
        """sha256 of the values; comments and order make no difference."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


_CHECKED_WITH: Final[dict[str, Any]] = {
    "intervals": True, "min_samples": 1, "min_ua": 0.0, "max_ira_loss": 0.0, "max_cra_loss": 0.0, "fid": True,
    "max_fid_rise": 0.0, "max_mean_drift": 0.0, "max_drift": 0.0, "max_drift_of": {}, "max_damaged": 0.0,
    "max_rebound": 1.0, "rebound_from": 0.0, "min_surrogate": 0.0, "max_residual": 0.0, "max_cra_erased_loss": 0.0,
    "max_concept_loss": 0.0, "max_damaged_erased": 0.0, "min_judge_accuracy": 0.0, "attack_budget": BUDGETS[0],
    "max_attack_success": {},
}  # fmt: skip


def _mapping_problems(rule: str, bounds: Any, most: float, of: str, example: str) -> list[str]:
    """What is wrong with bounds by name."""
    if not isinstance(bounds, Mapping):
        return [f"{rule} is {bounds!r}; it must map {of} to bounds, as in {example}, or be {{}}"]
    problems, seen = [], set[str]()
    for name, bound in bounds.items():
        if not isinstance(name, str) or not name.strip():
            problems.append(f"{rule} names {name!r}, one of {of}; it must be text")
            continue
        if normalise(name) in seen:
            problems.append(f"{rule} names {name!r} twice")
        seen.add(normalise(name))
        if type(bound) not in (int, float) or not 0.0 <= bound <= most:
            problems.append(f"{rule}: {name!r} is {bound!r}; allowed: [0, {most:g}]")
    return problems


def _attack_problems(budget: Any, bounds: Any) -> list[str]:
    """What is wrong with the names of attacks and their budget."""
    problems = [] if budget in BUDGETS else [f"attack_budget is {budget!r}; allowed: {', '.join(BUDGETS)}"]
    unknown = [name for name in bounds if name not in ATTACKS] if isinstance(bounds, Mapping) else []
    return problems + [f"max_attack_success names {name!r}; allowed: {', '.join(ATTACKS)}" for name in unknown]


@dataclass(frozen=True)
class Reason:
    """One rule: what was measured (None: nothing), what is allowed, and whether that is met; ``text`` is for people.
    ``concept``: the erased one whose erasure it is about; empty for a rule about the whole, or about what is kept."""

    rule: str
    measured: float | None
    allowed: float
    passed: bool
    text: str
    concept: str = ""


_HARM: Final = {"max_ira_loss", "max_cra_loss", "max_concept_loss", "max_fid_rise", "max_mean_drift", "max_drift",
                "max_drift_of", "max_damaged"}  # fmt: skip
"""The rules about what is kept."""


@dataclass(frozen=True)
class Verdict:
    """Passed only if every rule is."""

    policy: Policy
    reasons: tuple[Reason, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule is met."""
        return all(reason.passed for reason in self.reasons)

    @property
    def refusals(self) -> tuple[str, ...]:
        """The text of each rule that is not met."""
        return tuple(reason.text for reason in self.reasons if not reason.passed)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The erased concepts that do not meet a rule about themselves."""
        failing = (reason.concept for reason in self.reasons if not reason.passed)
        return tuple(dict.fromkeys(concept for concept in failing if concept))

    @property
    def harm(self) -> bool:
        """Whether it is refused, and for nothing but what became of what is kept."""
        failing = {reason.rule for reason in self.reasons if not reason.passed}
        return bool(failing) and failing <= _HARM

    def refused(self, what: str, advice: str = "") -> GateRefused:
        """The error of a verdict that did not pass: ``what`` was refused, each way in which, and what to do."""
        return GateRefused(f"{what}: {'; '.join(self.refusals)}{advice}", self.refusals, self.concepts, self.harm)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, schema ``spare.verdict/1``."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "policy": dataclasses.asdict(self.policy),
            "policy_sha256": self.policy.sha256,
            "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
        }


def judge_figures(evaluation: Mapping[str, Any], policy: Policy) -> Verdict:
    """Each rule of ``policy`` on an evaluation (schema ``spare.evaluation/1``; empty: nothing was measured)."""
    figures = Figures(evaluation, policy.intervals)
    reasons = [
        _at_least("min_samples", figures.samples(), policy.min_samples, "pictures of each erased concept"),
        _at_least("min_ua", figures.ua(), policy.min_ua, f"UA{figures.bound('lower')}"),
        *_each_ua(figures, policy.min_ua),
        *_surrogates(figures, policy.min_surrogate),
        *_residuals(figures, policy.max_residual),
        _at_most("max_ira_loss", figures.loss("ira"), policy.max_ira_loss, f"fall of IRA{figures.bound('upper')}"),
        _at_most("max_cra_loss", figures.loss("cra"), policy.max_cra_loss, f"fall of CRA{figures.bound('upper')}"),
    ]
    fall = figures.loss("cra_erased")
    what = f"fall of CRA on the erased concepts' pictures{figures.bound('upper')}"
    reasons.append(_at_most("max_cra_erased_loss", fall, policy.max_cra_erased_loss, what))
    reasons.extend(_concept_losses(figures, policy.max_concept_loss))
    if policy.fid:
        reasons.append(_at_most("max_fid_rise", figures.fid_rise(), policy.max_fid_rise, "relative rise of FID"))
    mean = figures.number("mean_drift")
    reasons.append(_at_most("max_mean_drift", mean, policy.max_mean_drift, "mean drift of the kept concepts"))
    unnamed = figures.number("unnamed_drift")
    reasons.append(_at_most("max_mean_drift", unnamed, policy.max_mean_drift, "drift of texts that name nothing"))
    reasons.extend(_drifts(figures, policy.max_drift))
    for name, bound in policy.max_drift_of.items():
        reasons.append(
            _at_most("max_drift_of", figures.drift_of(name), bound, f"drift of {name!r}, named by the policy")
        )
    damaged, erased = figures.damaged("kept"), figures.damaged("erased")
    reasons.append(_at_most("max_damaged", damaged, policy.max_damaged, "share of damaged kept pictures"))
    what = "share of damaged pictures of the erased concepts"
    reasons.append(_at_most("max_damaged_erased", erased, policy.max_damaged_erased, what))
    if policy.min_judge_accuracy:
        own = figures.judge_accuracy()
        reasons.append(_at_least("min_judge_accuracy", own, policy.min_judge_accuracy, "the judge's own accuracy"))
    reasons.extend(_rebounds(figures, policy))
    reasons.extend(_attacks(figures, policy))
    return Verdict(policy, tuple(reasons))


def _each_ua(figures: Figures, allowed: float) -> Iterator[Reason]:
    """A rule for each of several erased concepts: a mean hides one that is left."""
    names = figures.erased()
    for name in names if len(names) > 1 else []:
        yield _at_least("min_ua", figures.ua_of(name), allowed, f"UA of {name!r}{figures.bound('lower')}", name)


def _surrogates(figures: Figures, allowed: float) -> Iterator[Reason]:
    """What is drawn instead: a rule for each erased concept whose surrogate the suite has."""
    for i, row in figures.rows(erased=True):
        becomes = row.get("becomes")
        if becomes is not None:
            share = figures.number("per_concept", i, "becomes", "after")
            surrogate = becomes.get("surrogate") if isinstance(becomes, dict) else None
            what = f"share of the pictures of {row.get('concept')!r} that show {surrogate!r}"
            yield _at_least("min_surrogate", share, allowed, what, str(row.get("concept")))


def _residuals(figures: Figures, allowed: float) -> Iterator[Reason]:
    residuals = figures.evaluation.get("residuals")
    names = list(residuals) if isinstance(residuals, dict) else []
    for name in names:
        yield _at_most("max_residual", figures.number("residuals", name), allowed, f"residual of {name!r}", name)
    if not names:
        yield _at_most("max_residual", None, allowed, "residual of each erased concept")


def _concept_losses(figures: Figures, allowed: float) -> Iterator[Reason]:
    """A rule for each kept concept: a mean over fifty hides two that are destroyed. A fall counts where Fisher's exact
    test finds that it is no chance, by Holm's correction for so many concepts at 5 % in all."""
    falls = [(figures.fall(i), row.get("concept")) for i, row in figures.rows(erased=False)]
    if not falls:
        yield _at_most("max_concept_loss", None, allowed, "fall of the accuracy of each kept concept")
    by_chance = sorted(fall.chance for fall, _ in falls if fall is not None)
    limit = 0.0
    for rank, chance in enumerate(by_chance):
        if chance * (len(by_chance) - rank) > _LEVEL:
            break
        limit = chance
    for fall, name in falls:
        reason = _at_most("max_concept_loss", fall and fall.loss, allowed, f"fall of the accuracy of {name!r}")
        if fall is not None and not reason.passed and fall.chance > limit:
            reason = dataclasses.replace(reason, passed=True, text=f"{reason.text}, but it may be chance")
        yield reason


def _rebounds(figures: Figures, policy: Policy) -> Iterator[Reason]:
    """A rule for every concept that a bundle erased before its last change."""
    for i, (name, change) in enumerate(figures.rebounds()):
        then, now = figures.number("rebounds", i, "then"), figures.number("rebounds", i, "now")
        allowed = max(policy.rebound_from, policy.max_rebound * (then or 0.0))
        what = f"residual of {name!r} after {change}, {_as_text(then)} when it was added"
        yield _at_most("max_rebound", None if then is None else now, allowed, what)


def _attacks(figures: Figures, policy: Policy) -> Iterator[Reason]:
    """A rule for every erased concept and each attack that the policy names."""
    for attack, allowed in policy.max_attack_success.items():
        for name in figures.erased():
            success = figures.attack_success(attack, name, policy.attack_budget)
            what = f"share of pictures in which {attack!r} brings {name!r} back{figures.bound('upper')}"
            yield _at_most("max_attack_success", success, allowed, what, name)
        if not figures.erased():
            yield _at_most("max_attack_success", None, allowed, f"what {attack!r} brings back")


def _drifts(figures: Figures, allowed: float) -> Iterator[Reason]:
    names = figures.neighbours()
    for name in names:
        yield _at_most("max_drift", figures.number("drift", name), allowed, f"drift of {name!r}")
    if not names:
        yield _at_most("max_drift", None, allowed, "drift of each kept concept")


def _at_least(rule: str, measured: float | None, allowed: float, what: str, concept: str = "") -> Reason:
    passed = measured is not None and measured >= allowed
    text = f"{what}: {_as_text(measured)}; at least {allowed:g} is needed"
    return Reason(rule, measured, allowed, passed, text, concept)


def _at_most(rule: str, measured: float | None, allowed: float, what: str, concept: str = "") -> Reason:
    passed = measured is not None and measured <= allowed
    text = f"{what}: {_as_text(measured)}; at most {allowed:g} is allowed"
    return Reason(rule, measured, allowed, passed, text, concept)


def _as_text(measured: float | None) -> str:
    return "not measured" if measured is None else f"{measured:.4g}"
