"""What a request's own erasure begins with: a surrogate that is near and safe, and pictures that are those meant."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spare_core.cli.takedown import row_line
from spare_core.concepts.lists import build_erasures
from spare_core.errors import ConceptError, ImagesError, InputError, ObjectMissing, SettingsError
from spare_core.evaluation.gate import POLICIES, Policy
from spare_core.method.neighbours import rank_neighbours
from spare_core.method.settings import EraseSettings
from spare_core.models.unet import UNetDenoiser
from spare_core.store.base import sha256
from spare_core.takedown import erasing
from spare_core.takedown.erasing import Chosen, check_pictures, choose
from spare_core.takedown.parameters import Batch, check_batch
from spare_core.takedown.work import MOST
from spare_core.workflow.order import suite_digest
from tests.takedown.test_lists import request

CANDIDATES = ["Photo", "Rust", "Winter", "Mosaic", "a neon sign"]
SETTINGS = EraseSettings(
    failed_above=100.0, prior_texts=40, examples=4,
    retain_examples=4, heldout=3, example_steps=2, device="cpu", dtype="float32", rank=2
)  # fmt: skip
GIVEN: dict[str, Any] = {
    "model": "canvas", "requested": "", "skip_invalid": False, "retry_failed": False, "most": 0.0, "deadlines": "",
    "zone": "", "candidates": {}, "settings": {"rank": 4.0}, "bundle_settings": {}, "suite": "", "seeds": 1.0,
    "policy": "default", "bundle_policy": "", "name": "", "promote": True, "lease_minutes": 15.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def batch(sd1_dir: Path) -> Batch:
    """About the tiny model, with candidates of one's own."""
    canvas = check_batch(GIVEN)
    return dataclasses.replace(canvas, model=str(sd1_dir), settings=SETTINGS, candidates={"style": CANDIDATES})


def test_the_surrogate_is_the_nearest_candidate_that_nobody_wants_gone(batch: Batch, denoiser: UNetDenoiser) -> None:
    asked = request(surrogate="auto", concept="Neon Sign", protect=["Bricks"])
    ranked = rank_neighbours(denoiser, batch.erasure(asked, "Photo"), CANDIDATES[:4], SETTINGS)
    chosen = choose(batch, asked, denoiser, {"neon sign"})
    assert chosen.ranked == ranked, "and none that is the concept with an article"
    assert chosen.erasure.surrogate == ranked[0].name
    assert chosen.watched == [one.name for one in ranked[1:4]]
    assert {"Bricks", *chosen.watched} <= {*chosen.erasure.keep}
    nearest = ranked[0].name
    second = choose(batch, asked, denoiser, {"neon sign", nearest.lower()})
    assert second.erasure.surrogate == ranked[1].name
    assert nearest not in [one.name for one in second.ranked]


def test_a_surrogate_that_is_named_is_taken_and_its_neighbours_watched(batch: Batch, denoiser: UNetDenoiser) -> None:
    chosen = choose(batch, request(surrogate="Rust", concept="Neon Sign"), denoiser, {"neon sign"})
    assert chosen.erasure.surrogate == "Rust"
    assert "Rust" not in chosen.watched
    assert len(chosen.watched) == 3


def test_without_a_safe_candidate_it_says_what_to_name(
    batch: Batch, denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(surrogate="auto", concept="Neon Sign")
    with pytest.raises(ConceptError, match="every candidate to replace 'Neon Sign' is to be erased itself"):
        choose(batch, asked, denoiser, {"neon sign", *map(str.lower, CANDIDATES)})
    monkeypatch.setattr(erasing, "TOO_NEAR", 1e9)
    with pytest.raises(ConceptError, match="to the model every candidate is 'Neon Sign' itself"):
        choose(batch, asked, denoiser, {"neon sign"})


def test_pictures_must_be_those_that_are_meant(
    tmp_path: Path, bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARE_SOURCES", f"{tmp_path}, s3://{bucket}/evidence")
    (tmp_path / "a.png").write_bytes(b"a picture")
    s3.put_object(Bucket=bucket, Key="evidence/a.png", Body=b"a picture")
    digest = sha256(b"a picture")
    for uri in (str(tmp_path / "a.png"), f"s3://{bucket}/evidence/a.png"):
        check_pictures(request(images=[{"uri": uri, "sha256": digest}]))
        with pytest.raises(ImagesError, match="is not the one that the request means") as refused:
            check_pictures(request(images=[{"uri": uri, "sha256": "0" * 64}]))
        assert digest[:8] not in str(refused.value), "what lies there is told to nobody"
    with pytest.raises(ImagesError, match="cannot be read: No such file"):
        check_pictures(request(images=[{"uri": str(tmp_path / "b.png"), "sha256": digest}]))
    with pytest.raises(ObjectMissing):
        check_pictures(request(images=[{"uri": f"s3://{bucket}/evidence/b.png", "sha256": digest}]))


def test_what_is_wrong_with_a_request_is_told_without_a_model(batch: Batch) -> None:
    canvas = check_batch(GIVEN)
    fine = [request(), request(surrogate="auto", kind=None), request(concept="Cat", surrogate="Dog", kind=None)]
    assert [canvas.wrong_with(one) for one in fine] == ["", "", ""]
    wrong = [
        (canvas, request(concept="Unicorn", kind="style"), "Canvas has no style 'Unicorn'"),
        (canvas, request(surrogate="Dog"), "Canvas has no style 'Dog'"),
        (canvas, request(images=[{"uri": "a.png", "sha256": "0" * 64}]), "neither an s3:// address nor an absolute"),
        (batch, request(kind=None), "say what 'Neon Lines' is"),
        (batch, request(kind="object", concept="Unicorn"), "has no object 'Unicorn'"),
        (dataclasses.replace(batch, candidates={"style": ["neon lines"]}), request(surrogate="auto"), "no candidate"),
    ]
    for one, asked, said in wrong:
        assert said in one.wrong_with(asked)


def test_a_batch_is_read_back_and_names_the_bundle_of_its_model() -> None:
    batch = check_batch({**GIVEN, "bundle_settings": {"rank": 64.0}, "candidates": {"style": ["Photo"]}})
    assert Batch.from_json(batch.to_json()) == batch
    assert (batch.name, batch.settings.rank, batch.bundle_settings, batch.seeds) == ("spare.canvas", 4, {"rank": 64}, 1)
    assert batch.policy == batch.bundle_policy == Policy.find("default")
    assert suite_digest(batch._measured) == batch.suite_sha256
    for text in ("", "{}", '{"schema": "spare.batch/1"}', "[]"):
        with pytest.raises(InputError, match="no batch of the plan task"):
            Batch.from_json(text)


@pytest.mark.parametrize(("given", "gentle"), [({}, 6.0), ({"drift_price": 5, "rank": 8}, 7.5)])
def test_in_a_gentler_bundle_drift_costs_half_as_much_again(given: dict[str, Any], gentle: float) -> None:
    batch = check_batch({**GIVEN, "bundle_settings": given})
    assert batch.bundle_parameters([], [])["settings"] == given
    asked = batch.bundle_parameters([], [], gentler=True)["settings"]
    assert asked == {**given, "drift_price": gentle}
    EraseSettings.from_mapping(asked)


def test_a_first_bundle_has_room_for_all_that_wait_even_if_it_takes_half_of_them() -> None:
    """Its rank is that of all later ones."""
    for settings, names, rank in (({}, 28, 32), ({}, 57, 64), ({"rank": 24}, 57, 24)):
        batch = check_batch({**GIVEN, "bundle_settings": settings})
        assert batch.bundle_parameters([], [], room=names)["settings"] == {"rank": rank}


@pytest.mark.parametrize(("given", "of_bundle"), [("", ""), ("", "default"), ("default", "")])
def test_a_batch_without_a_policy_takes_that_of_the_environment(
    given: str, of_bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARE_POLICY", "lists")
    batch = check_batch({**GIVEN, "policy": given, "bundle_policy": of_bundle})
    assert batch.policy == Policy.find(given or "lists")
    assert batch.bundle_policy == Policy.find(of_bundle or given or "lists")


def test_a_bundle_may_have_a_policy_of_its_own(tmp_path: Path) -> None:
    batch = check_batch({**GIVEN, "bundle_policy": "lists"})
    assert (batch.policy, batch.bundle_policy) == (Policy.find("default"), Policy.find("lists"))
    assert Batch.from_json(batch.to_json()) == batch
    given = tmp_path / "own.yaml"
    shutil.copyfile(POLICIES["lists"], given)
    own = check_batch({**GIVEN, "policy": str(given)})
    assert own.policy == own.bundle_policy == Policy.find("lists")


def test_what_a_request_protects_is_kept_besides_what_its_model_keeps() -> None:
    """Canvas160 keeps few of its own accord; names that are no objects of its say nothing of an object."""
    batch = check_batch({**GIVEN, "model": "canvas160"})
    asked = request(concept="Giraffe", kind="object", surrogate="Camel", protect=["zebra", "Rust", "Camel", "dog"])
    erasure = batch.erasure(asked, "Camel", ["Horse", "Giraffe"])
    kept = erasure.keep
    alone = batch.erasure(request(concept="Giraffe", kind="object", surrogate="Camel"), "Camel").keep
    assert {*kept} - {*alone} == {"Zebra", "Horse"}
    assert len(kept) == len(alone) + 2
    assert erasing._facts(batch, Chosen(erasure, [], []))["row"]["keep"] == [*kept], "and by the bundle"


def test_everything_wrong_with_the_parameters_is_told_at_once() -> None:
    wrong = {
        "model": "nowhere/at/all", "most": -1.0, "candidates": {"animal": ["Dog"], "style": "Photo"},
        "bundle_settings": {"rank": 0}, "settings": {"stpes": 1}, "name": "../x", "lease_minutes": 0,
        "suite": "none.yaml", "policy": "none.yaml", "bundle_policy": "nil.yaml", "zone": "Berlin",
        "skip_invalid": "yes",
    }  # fmt: skip
    with pytest.raises(SettingsError) as caught:
        check_batch({**GIVEN, **wrong})
    told = "\n".join(caught.value.problems)
    for part in ("nowhere/at/all", "most is -1.0", "'animal'", "candidates of 'style'", "rank is 0", "stpes", "../x",
                 "none.yaml", "nil.yaml", "zone is 'Berlin'", "lease_minutes is 0",
                 "skip_invalid is 'yes'"):  # fmt: skip
        assert part in told, part


def test_a_batch_takes_no_more_than_a_run_holds() -> None:
    check_batch({**GIVEN, "most": float(MOST)})
    with pytest.raises(SettingsError, match="most is 301; allowed: 0 to 300, as many as a run holds"):
        check_batch({**GIVEN, "most": MOST + 1.0})


@given(st.text(max_size=40), st.text(max_size=20))
def test_whatever_a_request_says_is_data_in_the_ledgers_facts_and_in_what_is_told(concept: str, alias: str) -> None:
    """One printable line for people; a row that erases exactly the names that were asked for."""
    try:
        asked = request(concept=concept, aliases=[alias], surrogate="a plain style", kind="style")
    except ValueError:
        return
    names = [asked.concept, *asked.aliases]
    row = {"concept": names[0], "surrogate": asked.surrogate, "kind": "style", "keep": [], "aliases": names[1:]}
    (part,) = build_erasures("a/model", [row])
    assert [*part.names] == names
    line = row_line({
        "due_at": "2026-11-27T09:00Z", "state": "failed", "request_id": "R-1", "concept": asked.concept, "late": True,
        "soon": False, "reason": f"it is\n{asked.concept!r}",
    })  # fmt: skip
    assert line.isprintable()
