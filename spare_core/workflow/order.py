"""What a pipeline run is asked to do: erase one concept or a bundle's, and how the result is measured and judged.

Checked as a whole by the run's first task, which needs no GPU; every later task gets it as one JSON text, so that what
one task computed from it can be taken by another run that is asked the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from spare_core import built_in
from spare_core.adapters.manifest import versions
from spare_core.checks import Collected
from spare_core.concepts.concept import KINDS, Erasure
from spare_core.concepts.erasures import Erasures, keeping
from spare_core.concepts.lists import build_erasure, build_erasures, check_kept
from spare_core.errors import ConceptError, InputError, SettingsError
from spare_core.evaluation.attacked import ATTACKS
from spare_core.evaluation.gate import Policy
from spare_core.evaluation.suite import Suite, domain_of, load_suite, suite_of
from spare_core.method.settings import EraseSettings
from spare_core.models.files import find_model
from spare_core.runs.request import Request, check_room, images_digest
from spare_core.store.fetching import local_path
from spare_core.workflow.environment import policy_for
from spare_core.workflow.freshness import code_digest, reuse_period

SCHEMA: Final = "spare.order/1"
_TEXTS: Final = (
    "model", "erase", "surrogate", "kind", "images", "template", "suite", "policy", "name", "request_id", "requested",
    "deadlines", "bundle_policy", "zone",
)  # fmt: skip
_LISTS: Final = ("keep", "contexts", "without")
_NAMED: Final = ("model", "erase", "surrogate")
"""Texts that must not be empty."""
BUNDLE_RANK: Final = 32
"""Rank of a base's first bundle unless another is given. All bundles of a base keep it; it holds about as many
names."""
_SWITCHES: Final = ("promote", "grow", "skip_invalid", "retry_failed")
_MAPPINGS: Final = {"settings": "{steps: 60}", "bundle_settings": "{rank: 64}", "candidates": "{style: [Photo, Rust]}"}
_NUMBERS: Final = {"seeds": "all of the suite's", "most": "all that is open"}
"""Whole numbers, and what 0 means."""
_AFTERWARDS: Final = ("request_id", "promote", "policy", "name")
"""Decide what becomes of a result, not what it is."""
_ID_CHARACTERS: Final = 200
_T = TypeVar("_T")


class Champion(NamedTuple):
    """The bundle that a new one is to take the place of: its version, the sha256 of its evidence, and its
    ``spare.json``."""

    version: int
    evidence: str
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """``suite`` and ``seeds`` say what is drawn to measure; ``attacks`` what the erasure is attacked by, all that its
    policy has a rule for, with ``attack_budget``. What only decides what becomes of the result is not part of it: asked
    the same under a policy of other bounds, a run takes what is there.

    ``champion`` and ``evidence`` are of the bundle that this one grows from or takes the place of; 0 and empty where
    there is none, or where it is no bundle. ``held`` are the requests of a takedown ledger that are held, under a lease
    of so many minutes, as long as tasks work on the order."""

    request_id: str
    request: Request
    suite: str
    suite_sha256: str
    seeds: int
    champion: int = 0
    evidence: str = ""
    held: tuple[str, ...] = ()
    lease_minutes: float = 0.0
    attack_budget: str = ""
    attacks: tuple[str, ...] = ()

    def judged_by(self, policy: Policy) -> Order:
        """The order with what that policy asks to be measured."""
        attacks = tuple(name for name in ATTACKS if name in policy.max_attack_success)
        return dataclasses.replace(self, attack_budget=policy.attack_budget if attacks else "", attacks=attacks)

    def chosen_suite(self) -> Suite:
        """The suite, as far as it is drawn.

        Raises:
            SettingsError: if it is no longer the one that was checked.
        """
        return unchanged_suite(self.suite, self.seeds, self.suite_sha256)

    def to_json(self) -> str:
        """One line; the same order gives the same text, as long as results of it may be taken for one another's: see
        :mod:`spare_core.workflow.freshness`.

        Raises:
            InputError: if the environment says nonsense of how long that is.
        """
        values = {
            "schema": SCHEMA,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "request": self.request.as_dict(),
            "versions": versions(),
            "code": code_digest(),
            "period": reuse_period(),
        }
        return json.dumps(values, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Order:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: if it is something else.
        """
        try:
            values = json.loads(text)
            schema, *_ = (values.pop(name) for name in ("schema", "versions", "code", "period"))
            order = cls(**values | {
                "request": Request.from_dict(values["request"]), "held": tuple(values["held"]),
                "attacks": tuple(values["attacks"]),
            })  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is no order of a pipeline's first task: {error!r}") from None
        if schema != SCHEMA:
            raise InputError(f"this is an order of schema {schema!r}; this release reads {SCHEMA!r}")
        return order


def request_id_of(parameters: Mapping[str, Any]) -> str:
    """The id given, or one that the same parameters always get: a run that is repeated stays one request."""
    given = parameters.get("request_id")
    if isinstance(given, str) and given.strip():
        return given.strip()
    reported = {name: value for name, value in parameters.items() if name not in _AFTERWARDS}
    content = json.dumps(reported, sort_keys=True, default=str, ensure_ascii=False)
    return f"{str(parameters.get('erase', 'bundle'))[:80]} {hashlib.sha256(content.encode()).hexdigest()[:10]}".strip()


def check_order(
    parameters: Mapping[str, Any],
    problems_before: Sequence[str] = (),
    champion_of: Callable[[str], Champion | None] = lambda base: None,
) -> tuple[Order, Policy]:
    """From a pipeline's parameters, as KFP hands them over, to an order and the policy it will be judged by.

    A bundle's have ``requests`` in place of one concept. ``champion_of`` finds the bundle that there is for a base
    model of that digest.

    Raises:
        SettingsError: with everything that is wrong with any of them, after ``problems_before``.
    """
    shape = dict(shape_problems(parameters))
    given = {name: value for name, value in parameters.items() if name not in shape}
    found = Collected([*problems_before, *shape.values()], {*shape})
    base = found.attempt(lambda: find_model(given["model"]).digest(), "model")
    # What is wrong there is reported already.
    named = {"keep": [], "contexts": [], "template": "", "kind": "", "without": [], "grow": True, **given}
    champion: Champion | None = None
    if "requests" in parameters:
        champion = found.attempt(lambda: champion_of(base), "model", "name") if base else None
    asked = found.attempt(lambda: EraseSettings.from_mapping(whole_numbers(given["settings"])), "settings")
    if "requests" in parameters:
        erasures = found.attempt(lambda: _bundle(named, champion), "model", "requests")
    else:
        erasures = found.attempt(lambda: Erasures(_erasure(named)), "model", "erase", "surrogate")
    settings = found.attempt(lambda: _with_rank(asked, erasures, champion)) if asked and erasures else None
    images = found.attempt(lambda: _images(given.get("images", "")), "images")
    suite = found.attempt(lambda: checked_suite({"seeds": 0, **given}, erasures), "suite", "model")
    policy = found.attempt(lambda: Policy.find(policy_for(given["policy"])), "policy")
    if found.problems:
        raise SettingsError(found.problems)
    assert settings and erasures and base and suite and policy
    request = Request(given["model"], base, erasures, settings, given.get("images") or None, images)
    before = (champion.version, champion.evidence) if champion else (0, "")
    measured = suite_of(given["model"], given["suite"]), suite_digest(suite), int(given["seeds"])
    return Order(request_id_of(parameters), request, *measured, *before).judged_by(policy), policy


def _with_rank(settings: EraseSettings, erasures: Erasures, champion: Champion | None) -> EraseSettings:
    """A bundle's first version gets room for names to come; each later one has the rank of that one."""
    names = len(erasures.names)
    if not champion:
        check_room(erasures, settings)
        return settings.for_names(names, BUNDLE_RANK) if erasures.bundle else settings
    theirs = champion.manifest["settings"]["rank"]
    swapped = "an adapter that is swapped for another must have its rank"
    if settings.rank not in ("auto", theirs):
        raise SettingsError([
            f"rank is {settings.rank}, but the champion, version {champion.version}, has {theirs}: {swapped}; give "
            "that one, or another name"
        ])  # fmt: skip
    if names > theirs:
        raise SettingsError([
            f"{names} names are to be erased, but the champion, version {champion.version}, has rank {theirs}, which "
            f"holds as many names, and {swapped}; give another name, under which a bundle of a higher rank begins"
        ])  # fmt: skip
    return dataclasses.replace(settings, rank=theirs)


def _bundle(given: Mapping[str, Any], champion: Champion | None) -> Erasures:
    """What a bundle erases: of the champion's, if it grows, all but what is withdrawn; and what is asked for now. The
    same asked again is one request, which keeps what either does."""
    old = tuple(Erasures.of(champion.manifest)) if champion and given["grow"] else ()
    if given["without"] and not old:
        raise ConceptError(f"without names {given['without'][0]!r}, but there is no champion to take it out of")
    going = Erasures(*old).named(given["without"]) if old else []
    new = tuple(build_erasures(given["model"], given["requests"])) if given["requests"] else ()
    there = {dataclasses.replace(one, keep=()): one.keep for one in old if one not in going}
    asked = [dataclasses.replace(one, keep=()) for one in new]
    stay = [dataclasses.replace(bare, keep=keep) for bare, keep in there.items() if bare not in asked]
    again = [
        dataclasses.replace(one, keep=tuple(dict.fromkeys((*there.get(bare, ()), *one.keep))))
        for one, bare in zip(new, asked, strict=True)
    ]
    erasures = Erasures(*keeping([*stay, *again], going), bundle=True)
    check_kept(given["requests"], erasures)
    return erasures


def shape_problems(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Parameters of a wrong type, by name. A compiler checks types; what a program sends, nobody does."""
    problems = []

    def given(names: Sequence[str]) -> list[str]:
        return [name for name in names if name in parameters]

    for name in given(_TEXTS):
        if not isinstance(parameters[name], str):
            problems.append((name, f"{name} is {parameters[name]!r}; it must be text"))
    for name in given(_LISTS):
        value = parameters[name]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            problems.append((name, f'{name} is {value!r}; it must be a list of texts, as in ["Photo", "Rust"]'))
    for name in given([*_MAPPINGS]):
        if not isinstance(parameters[name], Mapping):
            problems.append((name, f"{name} is {parameters[name]!r}; it must be a mapping, as in {_MAPPINGS[name]}"))
    for name in given([*_NUMBERS]):
        value = parameters[name]
        if not (type(value) in (int, float) and value == int(value) and value >= 0):
            meant = f"it must be a whole number from 0, where 0 means {_NUMBERS[name]}"
            problems.append((name, f"{name} is {value!r}; {meant}"))
    for name in given(_SWITCHES):
        if not isinstance(parameters[name], bool):
            problems.append((name, f"{name} is {parameters[name]!r}; it must be true or false"))
    if not isinstance(parameters.get("requests", []), list):
        problems.append(("requests", f"requests is {parameters['requests']!r}; it must be a list of mappings, as in "
                                     "[{concept: Cat, surrogate: Dog}]"))  # fmt: skip
    identity = parameters.get("request_id")
    if isinstance(identity, str) and (len(identity) > _ID_CHARACTERS or not identity.isprintable()):
        problems.append(("request_id", f"request_id must be one printable line of at most {_ID_CHARACTERS} characters"))
    for name in given(_NAMED):
        if isinstance(parameters[name], str) and not parameters[name].strip():
            problems.append((name, f"{name} is empty; give {name}=TEXT"))
    return problems


def whole_numbers(value: Any) -> Any:
    """KFP carries every number as a double: whole ones become integers again."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return {name: whole_numbers(item) for name, item in value.items()} if isinstance(value, Mapping) else value


def _erasure(given: Mapping[str, Any]) -> Erasure:
    concept, surrogate, keep = given["erase"], given["surrogate"], given["keep"]
    try:
        return build_erasure(
            given["model"], concept, surrogate, given["kind"] or None, keep, given["template"] or None,
            given["contexts"] or None,
        )  # fmt: skip
    except ConceptError as error:
        if given["kind"] in KINDS:
            raise
        try:  # without a kind no more than the words can be checked
            Erasure(concept, surrogate, "object", tuple(keep), "{concept}", ())
        except ConceptError as words:
            reported = dict.fromkeys([*str(words).split("; "), str(error)])
            raise ConceptError("; ".join(reported if built_in.find(given["model"]) is None else [str(error)])) from None
        raise


def _images(images: str) -> str | None:
    return images_digest(local_path(images)) if images else None


def unchanged_suite(source: str, seeds: int, sha256: str) -> Suite:
    """The suite of that digest.

    Raises:
        SettingsError: if it is no longer the one that was checked.
    """
    suite = _suite(source, seeds)
    if suite_digest(suite) != sha256:
        raise SettingsError([f"suite {source!r} was changed since the run began; submit it again"])
    return suite


def _suite(source: str, seeds: int) -> Suite:
    return load_suite(source).restricted(seeds, 0)


def checked_suite(given: Mapping[str, Any], erasures: Erasures | None) -> Suite:
    """The suite, if it has a judge and knows the concepts."""
    source = suite_of(given["model"], given["suite"])
    suite = _suite(source, int(given["seeds"]))
    if suite.judge is None:
        raise SettingsError([f"suite {source!r} has no judge; write a YAML file with 'extends: {source}' and a judge"])
    for erasure in erasures or ():
        suite.find(erasure.concept, domain_of(erasure))
    return suite


def suite_digest(suite: Suite) -> str:
    """sha256 of all that a suite says."""
    values = json.dumps(dataclasses.asdict(suite), sort_keys=True, default=str)
    return hashlib.sha256(values.encode()).hexdigest()
