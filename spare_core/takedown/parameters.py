"""What a batch run is asked to do, checked before any work, as one JSON text that its tasks hand on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from spare_core import built_in
from spare_core.checks import Collected
from spare_core.concepts.concept import KINDS, Erasure, Kind
from spare_core.concepts.defaults import DEFAULTS
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.concepts.names import bare_name, normalise, same_concept
from spare_core.errors import InputError, SettingsError, SpareError
from spare_core.evaluation.gate import Policy
from spare_core.evaluation.suite import Suite, domain_of, suite_of
from spare_core.method.settings import EraseSettings
from spare_core.models.files import find_model
from spare_core.registry.naming import bundle_name, check_name
from spare_core.runs.request import Request
from spare_core.takedown.request import AUTO, TakedownRequest
from spare_core.takedown.sources import not_from_a_source, sources
from spare_core.takedown.times import read_zone
from spare_core.takedown.work import MOST
from spare_core.workflow.environment import policy_for
from spare_core.workflow.order import (
    BUNDLE_RANK,
    Order,
    checked_suite,
    shape_problems,
    suite_digest,
    unchanged_suite,
    whole_numbers,
)

SCHEMA: Final = "spare.batch/1"
_LEASE_MINUTES: Final = (0.01, 24 * 60.0)
_GENTLER: Final = 1.5
"""What drift costs in a bundle after one was refused for it, in its price before. Of sixty names it takes the ridge one
step of the search up, where twice as much takes it two, and a quarter of the names measure .35 or more."""


@dataclass(frozen=True)
class Batch:
    """``settings`` are of each request's own erasure, ``bundle_settings`` those in which the bundle's differ from their
    defaults; ``policy`` is what the gate asks of each request's own adapter, ``bundle_policy`` of the bundle;
    ``candidates`` by kind replace what surrogates and neighbours are chosen from; ``name`` is the bundle's
    registered model."""

    model: str
    base: str
    settings: EraseSettings
    bundle_settings: dict[str, Any]
    candidates: dict[str, list[str]]
    suite: str
    suite_sha256: str
    seeds: int
    policy: Policy
    bundle_policy: Policy
    name: str
    promote: bool
    lease_minutes: float

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Batch:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: if it is something else.
        """
        try:
            values = json.loads(text)
            schema = values.pop("schema")
            read = {name: Policy(**values[name]) for name in ("policy", "bundle_policy")}
            batch = cls(**{**values, "settings": EraseSettings.from_mapping(values["settings"]), **read})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is no batch of the plan task: {error!r}") from None
        if schema != SCHEMA:
            raise InputError(f"this is a batch of schema {schema!r}; this release reads {SCHEMA!r}")
        return batch

    def about(self) -> dict[str, str]:
        """What the ledger is to know of the model: facts of the requests that are planned for it."""
        return {"bundle": self.name, "base": self.base}

    def erasure(self, request: TakedownRequest, surrogate: str, watched: Sequence[str] = ()) -> Erasure:
        """The erasure of a request: it keeps what the request protects, the neighbours that are ``watched``, and the
        kind's own or, of a built-in model, that model's.

        Raises:
            ConceptError: see :class:`Erasure`; also for a kind that is needed and not there.
        """
        asked = self.model, request.concept, surrogate, request.kind
        erased = {bare_name(name) for name in request.names}
        known = built_in.find(self.model)
        if known is None:
            own = DEFAULTS[request.kind].keep if request.kind else ()
            others = [name for name in (*watched, *own) if bare_name(name) not in erased]
            keep = (*request.protect, *others)
        else:
            default = build_erasure(*asked, aliases=request.aliases)
            has = {normalise(name) for name in known.concepts[default.kind]} - {normalise(surrogate)}
            others = [name for name in watched if bare_name(name) not in erased]
            keep = (*default.keep, *(name for name in (*request.protect, *others) if normalise(name) in has))
        once = {normalise(name): name for name in keep}
        return build_erasure(*asked, [*once.values()], aliases=request.aliases)

    def order(self, request_id: str, erasure: Erasure) -> Order:
        """What the stages of one request's own erasure are asked."""
        request = Request(self.model, self.base, Erasures(erasure), self.settings)
        return Order(request_id, request, self.suite, self.suite_sha256, self.seeds).judged_by(self.policy)

    def bundle_parameters(
        self, rows: Sequence[Mapping[str, Any]], without: Sequence[str], gentler: bool = False, room: int = 0
    ) -> dict[str, Any]:
        """The parameters of ``pipelines/bundle.yaml`` for what the ledger wants; ``gentler``: drift costs half as much
        again. ``room``: so many names wait for a first bundle, whose rank all later ones have."""
        settings = dict(self.bundle_settings)
        if room:
            settings["rank"] = EraseSettings.from_mapping(settings).for_names(room, BUNDLE_RANK).rank
        if gentler:
            settings["drift_price"] = _GENTLER * settings.get("drift_price", EraseSettings().drift_price)
        return {
            "model": self.model, "requests": list(rows), "without": list(without), "grow": True,
            "settings": settings, "suite": self.suite, "seeds": self.seeds, "policy": "default",
            "name": self.name, "promote": self.promote, "request_id": "",
        }  # fmt: skip

    def candidates_for(self, kind: Kind | None, concept: str) -> list[str]:
        """What may replace a concept of that kind."""
        known = built_in.find(self.model)
        if known is None:
            return list(self.candidates.get(kind or "", DEFAULTS[kind].keep if kind else ()))
        if kind is None:
            kind = "style" if _is_one_of(concept, known.concepts["style"]) else "object"
        return list(self.candidates.get(kind, known.concepts.get(kind, ())))

    def wrong_with(self, request: TakedownRequest) -> str:
        """In words what keeps a request from being erased at all; empty if nothing does. No model is asked."""
        surrogate = request.surrogate
        try:
            for image in request.images:
                if reason := not_from_a_source(image.uri):
                    return reason
            if surrogate == AUTO:
                possible = self.candidates_for(request.kind, request.concept)
                surrogate = next((name for name in possible if not _is_one_of(name, request.names)), "")
                if not surrogate:
                    return "there is no candidate to choose its surrogate from; name a surrogate or candidates"
            erasure = self.erasure(request, surrogate)
            self._measured.find(erasure.concept, domain_of(erasure))
        except SpareError as error:
            return str(error)
        return ""

    @cached_property
    def _measured(self) -> Suite:
        return unchanged_suite(self.suite, self.seeds, self.suite_sha256)


def check_batch(parameters: Mapping[str, Any], problems_before: Sequence[str] = ()) -> Batch:
    """From the pipeline's parameters, as KFP hands them over.

    Raises:
        SettingsError: with everything that is wrong with any of them, after ``problems_before``.
    """
    shape = dict(shape_problems(parameters))
    found = Collected([*problems_before, *shape.values()], {*shape})
    given = {name: value for name, value in parameters.items() if name not in shape}
    base = found.attempt(lambda: find_model(given["model"]).digest(), "model")
    settings = found.attempt(lambda: EraseSettings.from_mapping(whole_numbers(given["settings"])), "settings")
    bundle = found.attempt(lambda: _bundle_settings(given["bundle_settings"]), "bundle_settings")
    candidates = found.attempt(lambda: _candidates(given["candidates"]), "candidates")
    suite = found.attempt(lambda: checked_suite({"seeds": 0, **given}, None), "suite", "model")
    policy = found.attempt(lambda: Policy.find(policy_for(given["policy"])), "policy")
    for_bundle = given["bundle_policy"] or given["policy"]
    bundle_policy = found.attempt(lambda: Policy.find(policy_for(for_bundle)), "bundle_policy")
    found.attempt(lambda: read_zone(given["zone"]), "zone")
    minutes = found.attempt(lambda: _minutes(given["lease_minutes"]), "lease_minutes")
    name = found.attempt(lambda: check_name(given["name"] or bundle_name(given["model"], base or "")), "name", "model")
    found.attempt(lambda: _check_most(given["most"]), "most")
    found.attempt(sources)
    if found.problems:
        raise SettingsError(found.problems)
    assert base and settings and suite and policy and bundle_policy and minutes and name
    assert bundle is not None and candidates is not None
    return Batch(
        given["model"], base, settings, bundle, candidates,
        suite_of(given["model"], given["suite"]), suite_digest(suite), int(given["seeds"]), policy,
        bundle_policy, name, given["promote"], minutes,
    )  # fmt: skip


def _bundle_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    values = whole_numbers(given)
    EraseSettings.from_mapping(values)
    return dict(values)


def _candidates(given: Mapping[str, Any]) -> dict[str, list[str]]:
    problems = [f"candidates has {kind!r}; allowed: {', '.join(KINDS)}" for kind in given if kind not in KINDS]
    for kind, names in given.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            problems.append(f"candidates of {kind!r} is {names!r}; it must be a list of texts, as in [Photo, Rust]")
    if problems:
        raise SettingsError(problems)
    return {kind: list(names) for kind, names in given.items()}


def _check_most(given: float) -> None:
    if given > MOST:
        raise SettingsError([f"most is {given:g}; allowed: 0 to {MOST}, as many as a run holds; the next takes more"])


def _minutes(given: Any) -> float:
    low, high = _LEASE_MINUTES
    if isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high:
        raise SettingsError([f"lease_minutes is {given!r}; it must be a number from {low} to {high:g}"])
    return float(given)


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    return any(same_concept(name, one) for one in names)
