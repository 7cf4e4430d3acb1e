"""What a pipeline run is asked to do: a request, and how its result is measured and judged.

Checked as a whole by the run's first task, which needs no GPU; every later task gets it as one JSON text, so that what
one task computed from it can be taken by another run that is asked the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from spare_core.artifact import versions
from spare_core.concept import KINDS, Erasure
from spare_core.erasures import Erasures
from spare_core.errors import ConceptError, InputError, SettingsError, SpareError
from spare_core.evaluation.suite import Suite, domain_of, load_suite
from spare_core.gate import Policy
from spare_core.locations import local_path
from spare_core.model_files import find_model
from spare_core.request import Request, build_erasure, images_digest
from spare_core.settings import EraseSettings

SCHEMA: Final = "spare.order/1"
_TEXTS: Final = ("model", "erase", "surrogate", "kind", "images", "template", "suite", "policy", "name", "request_id")
_LISTS: Final = ("keep", "contexts")
_AFTERWARDS: Final = ("request_id", "promote", "policy", "name")
"""Decide what becomes of a result, not what it is."""
_ID_CHARACTERS: Final = 200
_T = TypeVar("_T")


@dataclass(frozen=True)
class Order:
    """``suite`` and ``seeds`` say what is drawn to measure. What only decides what becomes of the result is not part of
    it: asked the same under another policy, a run takes what is there."""

    request_id: str
    request: Request
    suite: str
    suite_sha256: str
    seeds: int

    def chosen_suite(self) -> Suite:
        """The suite, as far as it is drawn.

        Raises:
            SettingsError: if it is no longer the one that was checked.
        """
        suite = _suite(self.suite, self.seeds)
        if _digest(suite) != self.suite_sha256:
            raise SettingsError([f"suite {self.suite!r} was changed since the run began; submit it again"])
        return suite

    def to_json(self) -> str:
        """One line; the same order gives the same text. It names the release, so another one takes no old results."""
        values = {
            "schema": SCHEMA,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "request": self.request.as_dict(),
            "versions": versions(),
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
            schema, _ = values.pop("schema"), values.pop("versions")
            order = cls(**values | {"request": Request.from_dict(values["request"])})
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
    told = {name: value for name, value in parameters.items() if name not in _AFTERWARDS}
    content = json.dumps(told, sort_keys=True, default=str, ensure_ascii=False)
    return f"{str(parameters.get('erase', ''))[:80]} {hashlib.sha256(content.encode()).hexdigest()[:10]}".strip()


def check_order(parameters: Mapping[str, Any], problems_before: Sequence[str] = ()) -> tuple[Order, Policy]:
    """From a pipeline's parameters, as KFP hands them over, to an order and the policy it will be judged by.

    Raises:
        SettingsError: with everything that is wrong with any of them, after ``problems_before``.
    """
    shape = dict(_shape_problems(parameters))
    given = {name: value for name, value in parameters.items() if name not in shape}
    found = _Collected([*problems_before, *shape.values()], {*shape})
    settings = found.attempt(lambda: EraseSettings.from_mapping(_whole(parameters["settings"])), "settings")
    named = {"keep": [], "contexts": [], "template": "", "kind": "", **given}  # what is wrong there is told already
    erasure = found.attempt(lambda: _erasure(named), "model", "erase", "surrogate")
    base = found.attempt(lambda: find_model(given["model"]).digest(), "model")
    images = found.attempt(lambda: _images(given["images"]), "images")
    suite = found.attempt(lambda: _checked_suite({"seeds": 0, **given}, erasure), "suite", "model")
    policy = found.attempt(lambda: Policy.find(given["policy"]), "policy")
    if found.problems:
        raise SettingsError(found.problems)
    assert settings and erasure and base and suite and policy
    request = Request(given["model"], base, Erasures(erasure), settings, given["images"] or None, images)
    seeds = int(given["seeds"])
    return Order(request_id_of(parameters), request, _suite_source(given), _digest(suite), seeds), policy


class _Collected:
    """Attempts that go on after a failure, and what went wrong in all of them; ``wrong`` names the parameters that are
    wrong in themselves."""

    def __init__(self, problems: list[str], wrong: set[str]) -> None:
        self.problems, self.wrong = problems, wrong

    def attempt(self, check: Callable[[], _T], *needs: str) -> _T | None:
        """What ``check`` returns; None if it fails, or if a parameter that it needs is wrong in itself."""
        if self.wrong & {*needs}:
            return None
        try:
            return check()
        except SettingsError as error:
            self.problems += error.problems
        except SpareError as error:
            self.problems.append(str(error))
        return None


def _shape_problems(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Parameters of a wrong type, by name. A compiler checks types; what a program sends, nobody does."""
    problems = []
    for name in _TEXTS:
        if not isinstance(parameters[name], str):
            problems.append((name, f"{name} is {parameters[name]!r}; it must be text"))
    for name in _LISTS:
        value = parameters[name]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            problems.append((name, f'{name} is {value!r}; it must be a list of texts, as in ["Photo", "Rust"]'))
    if not isinstance(parameters["settings"], Mapping):
        problems.append(
            ("settings", f"settings is {parameters['settings']!r}; it must be a mapping, as in {{steps: 60}}")
        )
    seeds = parameters["seeds"]
    if not (type(seeds) in (int, float) and seeds == int(seeds) and seeds >= 0):
        problems.append(
            ("seeds", f"seeds is {seeds!r}; it must be a whole number from 0, where 0 draws all of the suite's")
        )
    if not isinstance(parameters["promote"], bool):
        problems.append(("promote", f"promote is {parameters['promote']!r}; it must be true or false"))
    identity = parameters["request_id"]
    if isinstance(identity, str) and (len(identity) > _ID_CHARACTERS or not identity.isprintable()):
        problems.append(("request_id", f"request_id must be one printable line of at most {_ID_CHARACTERS} characters"))
    for name in ("model", "erase", "surrogate"):
        if isinstance(parameters[name], str) and not parameters[name].strip():
            problems.append((name, f"{name} is empty; give {name}=TEXT"))
    return problems


def _whole(value: Any) -> Any:
    """KFP carries every number as a double: whole ones become integers again."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return {name: _whole(item) for name, item in value.items()} if isinstance(value, Mapping) else value


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
            told = dict.fromkeys([*str(words).split("; "), str(error)])
            raise ConceptError("; ".join(told if given["model"] != "canvas" else [str(error)])) from None
        raise


def _images(images: str) -> str | None:
    return images_digest(local_path(images)) if images else None


def _suite(source: str, seeds: int) -> Suite:
    return load_suite(source).restricted(seeds, 0)


def _suite_source(given: Mapping[str, Any]) -> str:
    """Canvas brings its own suite."""
    return str(given["suite"] or ("canvas" if given["model"] == "canvas" else ""))


def _checked_suite(given: Mapping[str, Any], erasure: Erasure | None) -> Suite:
    """The suite, if it has a judge and knows the concept."""
    source = _suite_source(given)
    if not source:
        raise SettingsError(["suite is empty; only Canvas brings its own, give 'unlearncanvas' or a YAML file"])
    suite = _suite(source, int(given["seeds"]))
    if suite.judge is None:
        raise SettingsError([f"suite {source!r} has no judge; write a YAML file with 'extends: {source}' and a judge"])
    if erasure is not None:
        suite.find(erasure.concept, domain_of(erasure))
    return suite


def _digest(suite: Suite) -> str:
    values = json.dumps(dataclasses.asdict(suite), sort_keys=True, default=str)
    return hashlib.sha256(values.encode()).hexdigest()
