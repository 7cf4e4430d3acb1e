"""An attack is complete, goes on where it was stopped, keeps what it finds to itself, and refuses bad input at once."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spare_core.adapters.directory import StoredAdapter
from spare_core.adapters.low_rank import Adapter
from spare_core.attacks import besieged
from spare_core.attacks.attack import attack, table
from spare_core.attacks.besieged import named_by_base
from spare_core.attacks.inversion import invert
from spare_core.attacks.scene import Scene
from spare_core.attacks.tampering import forms as tampered_forms
from spare_core.canvas.judge import GridJudge
from spare_core.errors import AdapterError, ConceptError, InputError, OutputError, SettingsError
from spare_core.evaluation.attacked import TARGETS
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.suite import load_suite
from spare_core.files.atomic import read_tensors
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from tests.support.attacking import SUITE
from tests.support.grids import small_suite

pytest_plugins = ("tests.support.attack_fixtures",)
pytestmark = pytest.mark.usefixtures("small_attacks")


def run(denoiser: UNetDenoiser, judge: GridJudge, output: Path, *stored: StoredAdapter, **changes: Any) -> Any:
    """:func:`attack` with what most tests share."""
    values = {"suite": SUITE, "erased": [], "budget": "quick", **changes}
    return attack(denoiser, denoiser.files.digest(), stored, judge=judge, output=output, **values)


def test_an_attack_is_complete(denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path) -> None:
    """Every target under every attack, as JSON; the weights are as they were."""
    before = {name: tensor.clone() for name, tensor in denoiser.weights.state_dict().items()}
    report = run(denoiser, judge, tmp_path / "out", stored)
    assert json.loads((tmp_path / "out" / "attack.json").read_text()) == json.loads(json.dumps(report))
    assert (report["schema"], report["erased"], report["adapters"]) == (
        "spare.attack/2",
        ["Neon Lines"],
        [stored.sha256],
    )
    assert report["budget"]["conditioning"] == {"steps": 2, "rates": (0.02, 0.1)}
    assert report["budget"]["pictures"] == 3
    (one,) = report["concepts"]
    assert (one["concept"], one["domain"]) == ("Neon Lines", "style")
    for target in TARGETS:
        for name, titles in (("inversion", {"1v-lr0.2-0"}), ("conditioning", {"1v-lr0.02-0", "1v-lr0.1-0"})):
            inverted = one[name][target]
            assert {*inverted["tries"]} == titles
            assert inverted["shown"] == max(each["shown"] for each in inverted["tries"].values())
            assert inverted["pictures"] == 3
        own = {"name"} if target == "base" else {*tampered_forms(stored.adapter)}
        relearned = {"name"} if target == "base" else {"lora-4", "full-4"}
        for name, titles in (
            ("pictures", {"1v-lr0.2-0"}),
            ("prompt", {"noise", "prediction"}),
            ("latents", {"img2img 0.5", "img2img 0.75", "null-text"}),
            ("relearning", relearned),
            ("tampering", own),
        ):
            made = one[name][target]
            assert {*made["tries"]} == titles
            assert made["shown"] == max(each["shown"] for each in made["tries"].values())
        if target != "base":
            relearned = one["relearning"][target]
            assert {*relearned["controls"]} == {"lora-unrelated", "full-unrelated"}
            shown = [*relearned["controls"].values(), *relearned["tries"].values()]
            assert len({each["picture"] for each in shown}) == len(shown)
        phrases = one["paraphrase"][target]["phrases"]
        assert phrases["name"]["pictures"] == 2
        assert {"article", "letter left out", "prompt 'a photo of {}'"} <= {*phrases}
    lefts = {
        target: [each["left_before"] for each in one["conditioning"][target]["tries"].values()] for target in TARGETS
    }
    assert max(lefts["base"]) < 1e-3
    assert min(lefts["adapted"]) > 1e-3
    assert "| Neon Lines | conditioning |" in table(report)
    after = denoiser.weights.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_one_prompt_is_drawn_with_as_many_seeds_as_pictures(denoiser: UNetDenoiser, judge: GridJudge) -> None:
    scene = Scene(denoiser, SUITE, judge, "style", "neon lines")
    assert scene.concept == "Neon Lines"
    assert scene.seeds(1) == [188]
    assert scene.seeds(4) == [188, 288, 289, 290]
    assert len(scene.prompts(100)) == 6, "three objects, two seeds"
    assert scene.prompts(2, "red") == ["A Cat image in red style.", "A Tower image in red style."]
    assert scene.shown(["a cat"] * 4, seeds=scene.seeds(4))["pictures"] == 4


def test_a_judge_that_must_be_sure_sees_less() -> None:
    """Of Canvas's own pictures, and of what is between them and noise."""
    canvas, suite = load_denoiser("canvas", "cpu", "float32"), load_suite("canvas")
    judge = load_judge(suite)
    any_, sure, never = (Scene(canvas, suite, judge, "object", "Tower", least) for least in (0.0, 0.8, 1.1))
    drawn = any_.draw(canvas.encode_prompts(any_.prompts(4)), any_.own_seeds(4))
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    latents = torch.cat([drawn, drawn + 0.4 * noise, drawn + 0.8 * noise])
    found = judge.judge(canvas.decode_latents(latents)).objects
    named, probability = found.predicted == any_.row, found.probabilities[:, any_.row]
    assert any_.seen(latents) == named.tolist()
    assert sure.seen(latents) == (named & (probability >= 0.8)).tolist()
    assert 0 < sum(sure.seen(latents)) < sum(any_.seen(latents))
    assert not any(never.seen(latents))


def test_only_phrases_count_that_name_the_concept_to_the_base() -> None:
    def shown(*shares: float) -> dict[str, Any]:
        return {way: {"shown": share, "pictures": 4} for way, share in zip("abc", shares, strict=True)}

    counted = named_by_base(shown(0.0, 0.5, 1.0), shown(1.0, 0.5, 0.25))
    assert (counted["shown"], counted["prompts"], counted["worst"], counted["pictures"]) == (0.25, 0.5, "b", 8)
    assert named_by_base(shown(1.0, 1.0, 1.0), shown(0.0, 0.25, 0.4))["shown"] is None


def test_what_is_found_is_kept_apart_for_its_owner_alone(
    denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scene, "seen", lambda scene, latents: [False] * len(latents))  # so that prompts are searched
    report = run(denoiser, judge, tmp_path / "out", stored, attacks=["conditioning", "prompt"])
    assert stat.S_IMODE((tmp_path / "out" / "found").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in (tmp_path / "out" / "found").iterdir())
    (one,) = report["concepts"]
    prompts = Scene(denoiser, SUITE, judge, "style", "Neon Lines").prompts(2)
    for target in TARGETS:
        vectors, texts = (
            [tmp_path / "out" / each["file"] for each in one[name][target]["tries"].values()]
            for name in ("conditioning", "prompt")
        )
        assert all(read_tensors(file)[0]["vectors"].shape[0] == 1 for file in vectors)
        for file in texts:
            found = json.loads(file.read_text())
            assert [*found] == prompts
            assert all(len(tokens) == 3 for tokens in found.values())
            assert file.read_text() not in (tmp_path / "out" / "attack.json").read_text()


def test_some_of_the_pictures_that_an_attack_is_judged_by_are_there_to_look_at(
    denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path
) -> None:
    """Under names that no phrase has a part in."""
    own = "../glowing tubes"
    report = run(denoiser, judge, tmp_path / "out", stored, attacks=["paraphrase", "tampering"], phrases=[own])
    (one,) = report["concepts"]
    assert f"given {own}" in one["paraphrase"]["adapted"]["phrases"]
    works = [*one["paraphrase"]["adapted"]["phrases"].values(), *one["tampering"]["adapted"]["tries"].values()]
    for work in works:
        assert re.fullmatch(r"found/style-\d+-adapted-(paraphrase|tampering)-\d+\.png", work["picture"])
        with Image.open(tmp_path / "out" / work["picture"]) as picture:
            side = denoiser.resolution
            assert picture.size == (side * min(8, work["pictures"]), side)
    assert len({work["picture"] for work in works}) == len(works)


def test_stopped_anywhere_it_goes_on_where_it_was(
    denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(denoiser, judge, tmp_path / "whole", stored, attacks=["conditioning"])
    calls: list[Any] = []

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return invert(*arguments)

    monkeypatch.setattr(besieged, "invert", dying)
    with pytest.raises(KeyboardInterrupt):
        run(denoiser, judge, tmp_path / "out", stored, attacks=["conditioning"])
    assert not (tmp_path / "out" / "attack.json").exists()
    with (tmp_path / "out" / "done.jsonl").open("a") as file:
        file.write('["cut')
    resumed = run(denoiser, judge, tmp_path / "out", stored, attacks=["conditioning"])
    assert len(calls) == 4 + 3, "three tries were done, three were left"
    for target in TARGETS:
        ours, theirs = (one["concepts"][0]["conditioning"][target]["tries"] for one in (resumed, whole))
        for title in theirs:
            assert ours[title]["left"] == pytest.approx(theirs[title]["left"], rel=1e-3)
    assert run(denoiser, judge, tmp_path / "out", stored, attacks=["conditioning"]) == resumed
    assert len(calls) == 7
    with pytest.raises(OutputError, match="other settings"):
        run(denoiser, judge, tmp_path / "out", stored, attacks=["conditioning"], seed=2)


def test_what_is_complete_is_returned_without_any_work(
    denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the plain erasure is made again."""
    report = run(denoiser, judge, tmp_path / "out", stored, attacks=["tampering"])

    def never(*_: Any) -> Any:
        raise AssertionError("worked again")

    monkeypatch.setattr(besieged, "prepare", never)
    monkeypatch.setattr(Scene, "shown", never)
    assert run(denoiser, judge, tmp_path / "out", stored, attacks=["tampering"]) == report


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"attacks": ["magic"]},
            SettingsError,
            r"attack is magic; allowed: paraphrase, prompt, .*tampering",
        ),
        ({"attacks": []}, SettingsError, r"attack is missing"),
        ({"budget": "endless"}, SettingsError, r"budget is 'endless'; allowed: quick, standard, paper"),
        ({"phrases": ["glowing tubes", " "]}, SettingsError, "a phrase is empty"),
        ({"erased": ["Rust"]}, ConceptError, r"'Rust' is not erased there, but Neon Lines"),
        ({"suite": small_suite(styles=("Photo", "Rust"))}, ConceptError, r"has no style 'Neon Lines'"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path, changes: dict[str, Any],
    error: type[InputError], message: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        run(denoiser, judge, tmp_path / "out", stored, **changes)
    assert not (tmp_path / "out").exists()


def test_without_an_adapter_there_is_nothing_to_attack(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="give one or more with --adapter"):
        run(denoiser, judge, tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(
    denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match=r"holds thesis.txt and no attack of ours"):
        run(denoiser, judge, tmp_path / "out", stored)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="is a file"):
        run(denoiser, judge, tmp_path / "out" / "thesis.txt", stored)


def test_an_adapter_of_another_architecture_is_refused(
    denoiser: UNetDenoiser, judge: GridJudge, stored: StoredAdapter, tmp_path: Path
) -> None:
    renamed = Adapter({f"elsewhere.{name}": update for name, update in stored.adapter.updates.items()})
    with pytest.raises(AdapterError, match="made for another architecture"):
        run(denoiser, judge, tmp_path / "out", dataclasses.replace(stored, adapter=renamed))
    assert not (tmp_path / "out").exists()
