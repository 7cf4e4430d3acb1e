"""A bundle suppresses what its parts do, is measured against each of them anew, and is an adapter like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from spare_core.adapters.algebra import concatenated
from spare_core.adapters.directory import load_adapter
from spare_core.adapters.layer_mask import LayerMask
from spare_core.adapters.verify import verify_adapter
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.errors import AdapterError, ConceptError, InputError, ModelError, OutputError, SettingsError
from spare_core.method.residual import Measurement
from spare_core.method.settings import EraseSettings
from spare_core.runs import compose as module
from spare_core.runs.compose import Candidate, best, compose, freed_adapter, with_rank
from spare_core.runs.erase import erase
from tests.adapters.test_algebra import random_adapter, still

SETTINGS = EraseSettings(
    failed_above=100.0, prior_texts=40,
    examples=4, retain_examples=4, heldout=4, example_steps=2, batch_size=2, steps=3, lr=1e-3, rank=3, bins=4,
    dtype="float32", device="cpu",
)  # fmt: skip
OBJECTS, STYLES = ("cat", "dog", "hat"), ("Neon", "Rust", "Ink")


def of_grid(concept: str, surrogate: str) -> Erasure:
    style = concept in STYLES
    own, others = (STYLES, OBJECTS) if style else (OBJECTS, STYLES)
    kept = tuple(name for name in own if name not in (concept, surrogate))
    template = "{context} in {concept}" if style else "{concept} in {context}"
    return Erasure(concept, surrogate, "style" if style else "object", kept, template, others)


PARTS = {"neon": of_grid("Neon", "Rust"), "cat": of_grid("cat", "dog"), "rust": of_grid("Rust", "Ink")}


@pytest.fixture(scope="module")
def parts(sd1_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each."""
    folder = tmp_path_factory.mktemp("parts")
    for name, erasure in PARTS.items():
        erase(str(sd1_dir), Erasures(erasure), SETTINGS, folder / name)
    return {name: folder / name for name in PARTS}


@pytest.fixture(scope="module")
def composed(
    sd1_dir: Path, parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """All three in one."""
    output = tmp_path_factory.mktemp("bundle") / "out"
    return output, compose(str(sd1_dir), list(parts.values()), output, SETTINGS)


def test_a_bundle_says_what_it_erases_how_it_was_made_and_why(
    composed: tuple[Path, dict[str, Any]], parts: dict[str, Path]
) -> None:
    output, manifest = composed
    assert json.loads((output / "spare.json").read_text()) == json.loads(json.dumps(manifest))
    assert [(one["concept"], one["surrogate"]) for one in manifest["requests"]] == [
        ("Neon", "Rust"), ("cat", "dog"), ("Rust", "Ink"),
    ]  # fmt: skip
    assert [one["adapter"] for one in manifest["requests"]] == [load_adapter(part).sha256 for part in parts.values()]
    candidates = manifest["composition"]["candidates"]
    assert {name: one["rank"] for name, one in candidates.items()} == {
        "concatenated": 9, "compressed": 3, "refined": 3, "joint": 3,
    }  # fmt: skip
    for one in candidates.values():
        assert set(one["residuals"]) == {"Neon", "cat", "Rust"}
        assert set(one["drift"]) == {"Ink", "dog", "hat", "(empty prompt)"}
    taken = candidates[manifest["composition"]["chosen"]]
    # What is reported was measured on probes that chose nothing.
    for measured in ("residuals", "drift"):
        assert manifest[measured].keys() == taken[measured].keys()
        assert manifest[measured] != taken[measured]
    worst = {name: max(one["residuals"].values()) for name, one in candidates.items() if name != "concatenated"}
    assert worst[manifest["composition"]["chosen"]] == min(worst.values())
    assert 0 < candidates["compressed"]["error"] <= candidates["compressed"]["worst_error"] < 1
    assert candidates["refined"]["steps"] == candidates["joint"]["steps"] == 3


def test_a_bundle_is_an_adapter_like_any_other(composed: tuple[Path, dict[str, Any]], sd1_dir: Path) -> None:
    """Stock diffusers predicts with it what we do; and a further concept joins it."""
    output, _ = composed
    report = verify_adapter(output, str(sd1_dir))
    assert report["erased"] == {"Neon": "Rust", "cat": "dog", "Rust": "Ink"}
    assert report["reversible"] is True and report["diffusers_difference"] <= 1e-5
    assert {len(update.down) for update in load_adapter(output).adapter.updates.values()} == {3}


def test_a_bundle_grows_by_one(sd1_dir: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    first = compose(str(sd1_dir), [parts["neon"], parts["cat"]], tmp_path / "two", SETTINGS)
    grown = compose(str(sd1_dir), [tmp_path / "two", parts["rust"]], tmp_path / "three", SETTINGS)
    assert [one["concept"] for one in first["requests"]] == ["Neon", "cat"]
    assert [one["concept"] for one in grown["requests"]] == ["Neon", "cat", "Rust"]
    assert [one["adapter"] for one in grown["requests"]] == [load_adapter(part).sha256 for part in parts.values()]


def test_a_bundle_shrinks_and_what_was_withdrawn_is_back(
    composed: tuple[Path, dict[str, Any]], sd1_dir: Path, tmp_path: Path
) -> None:
    """The others stay; a surrogate that was followed to its own is a surrogate again."""
    output = tmp_path / "out"
    shrunk = compose(str(sd1_dir), [composed[0]], output, SETTINGS, without=["rust"])
    assert [one["concept"] for one in shrunk["requests"]] == ["Neon", "cat"]
    assert [one["adapter"] for one in shrunk["requests"]] == [one["adapter"] for one in composed[1]["requests"]][:2]
    assert set(shrunk["residuals"]) == {"Neon", "cat"}
    assert "Rust" in shrunk["drift"]
    assert list(shrunk["composition"]["candidates"]) == ["joint"]
    assert set(shrunk["withdrawn"]) == {"Rust"}
    assert shrunk["withdrawn"]["Rust"]["back"] is (shrunk["withdrawn"]["Rust"]["moved"] <= 0.2)
    # It is what is made of these two, without a trace of the third.
    both = Erasures(PARTS["neon"], PARTS["cat"])
    assert erase(str(sd1_dir), both, SETTINGS, tmp_path / "both")["files"] == shrunk["files"]


def test_a_killed_composition_goes_on(
    composed: tuple[Path, dict[str, Any]], sd1_dir: Path, parts: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Here killed after the joint way: its stages are not done again, and the bytes are those of one that was not, as
    the same parts always give."""

    def dying(*args: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "compressed", dying)
        with pytest.raises(KeyboardInterrupt):
            compose(str(sd1_dir), list(parts.values()), output, SETTINGS)
    assert [path.name for path in output.iterdir()] == [".checkpoint"]
    monkeypatch.setattr("spare_core.runs.stages.fill_bank", lambda *args: pytest.fail("examples were drawn again"))
    again = compose(str(sd1_dir), list(parts.values()), output, SETTINGS)
    assert again["files"] == composed[1]["files"]
    assert sorted(path.name for path in output.iterdir()) == ["pytorch_lora_weights.safetensors", "spare.json"]
    assert compose(str(sd1_dir), list(parts.values()), output, SETTINGS) == json.loads(json.dumps(again))
    with pytest.raises(OutputError, match="another request"):
        compose(str(sd1_dir), [parts["neon"]], output, SETTINGS)


@pytest.mark.parametrize(
    ("without", "said"),
    [(["Dog"], "'Dog' is not erased there, but Neon, cat"), (["neon", "CAT"], "nothing would be left")],
)
def test_what_cannot_be_withdrawn_is_refused(
    sd1_dir: Path, parts: dict[str, Path], tmp_path: Path, without: list[str], said: str
) -> None:
    with pytest.raises(ConceptError, match=said):
        compose(str(sd1_dir), [parts["neon"], parts["cat"]], tmp_path / "out", SETTINGS, without=without)
    assert not (tmp_path / "out").exists()


def candidate(name: str, residuals: tuple[float, ...], drift: float) -> Candidate:
    measured = Measurement({str(i): value for i, value in enumerate(residuals)}, {"kept": drift})
    return Candidate(name, random_adapter(0), measured, {})


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([("a", (0.3, 0.1), 0.0), ("b", (0.2, 0.2), 0.9)], "b"),  # the worst one decides, not the mean
        ([("a", (0.01, 0.01), 0.2), ("b", (0.049, 0.04), 0.1)], "b"),  # both low enough: the drift decides
        ([("a", (0.01, 0.01), 0.2), ("b", (0.06, 0.01), 0.1)], "a"),
    ],
)
def test_the_best_way_leaves_least_of_the_worst_and_then_drifts_least(
    others: list[tuple[str, tuple[float, ...], float]], expected: str
) -> None:
    found = best([candidate(*other) for other in others], EraseSettings(enough_residual=0.05))
    assert found.name == expected


def test_of_a_long_list_the_way_that_costs_least_is_taken() -> None:
    """The worst of single trajectories is chance."""
    settings = EraseSettings(heldout=3)
    spiked, drifting = candidate("joint", (0.1, 0.1, 0.1, 0.9), 0.01), candidate("refined", (0.3,) * 4, 0.5)
    assert best([spiked, drifting], settings).name == "joint"
    assert best([spiked, drifting], EraseSettings(heldout=4)).name == "refined"


def test_training_goes_on_from_the_very_change_and_may_use_all_that_moves() -> None:
    adapter = random_adapter(0)
    whole = {
        name: LayerMask(torch.ones(u.shape[0], dtype=torch.bool), torch.zeros(u.shape[1], dtype=torch.bool))
        for name, u in adapter.updates.items()
    }
    freed = freed_adapter(concatenated([adapter, still()]), whole, 0)
    for name, update in freed.updates.items():
        torch.testing.assert_close(update.delta(), adapter.updates[name].delta())
        moved = adapter.updates[name].down.ne(0).any(dim=0)
        assert update.columns.bool().equal(moved) and update.rows.all()
        assert update.down.ne(0).any(dim=1).all()  # also where nothing was, so that it can learn


@pytest.mark.parametrize(
    ("chosen", "changes", "error", "said"),
    [
        ([], {}, AdapterError, "no adapter"),
        (["neon", "neon"], {}, ConceptError, "'Neon' would be erased twice"),
        (["neon", "back"], {}, ConceptError, "Neon -> Rust -> Neon"),
        (["neon", "damaged"], {}, AdapterError, "was changed or damaged"),
        (["neon", "nameless"], {}, AdapterError, "does not say what it erases"),
        (["neon", "other"], {}, ModelError, "trained for the base model"),
        (["neon", "cat"], {"rank": 1000}, SettingsError, "rank is 1000"),
        (["neon", "cat"], {"mask": "weight"}, SettingsError, "mask is 'weight'"),
        (["neon", "cat"], {"rank": 1}, SettingsError, "rank is 1, but 2 names are to be erased"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    sd1_dir: Path, sd2_dir: Path, parts: dict[str, Path], tmp_path: Path, chosen: list[str], changes: dict[str, Any],
    error: type[InputError], said: str,
) -> None:  # fmt: skip
    here = {name: shutil.copytree(part, tmp_path / name) for name, part in parts.items()}

    def edited(name: str, **values: Any) -> Path:
        folder = shutil.copytree(parts["cat"], tmp_path / name)
        manifest = {**json.loads((folder / "spare.json").read_text()), **values}
        (folder / "spare.json").write_text(json.dumps({key: value for key, value in manifest.items() if value != ""}))
        return folder

    here["back"] = edited("back", **of_grid("Rust", "Neon").as_dict())
    here["nameless"] = edited("nameless", concept="")
    here["other"] = edited("other", base={"digest": "0" * 64})
    here["damaged"] = edited("damaged")
    weights = here["damaged"] / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    settings = EraseSettings.from_mapping({**SETTINGS.as_dict(), **changes})
    with pytest.raises(error, match=said):
        compose(str(sd1_dir), [here[name] for name in chosen], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_a_bundle_keeps_the_rank_of_those_it_is_made_from(
    composed: tuple[Path, dict[str, Any]], sd1_dir: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    """Single adapters of any rank may join."""
    settings = EraseSettings.from_mapping({**SETTINGS.as_dict(), "rank": 4})
    with pytest.raises(SettingsError, match=r"rank is 4, but the bundles .* have 3.*give --rank 3"):
        compose(str(sd1_dir), [composed[0]], tmp_path / "out", settings)
    chosen = EraseSettings.from_mapping({**SETTINGS.as_dict(), "rank": "auto"})
    again = compose(str(sd1_dir), [composed[0]], tmp_path / "again", chosen)
    assert again["settings"]["rank"] == 3
    wider = compose(str(sd1_dir), [parts["neon"], parts["cat"]], tmp_path / "out", settings)
    assert {one["rank"] for one in wider["composition"]["candidates"].values()} == {6, 4}


@pytest.mark.parametrize(
    ("ranks", "names", "given", "rank"),
    [
        ([], 12, "auto", "auto"), ([3], 3, "auto", 3), ([3], 4, "auto", 8), ([16, 104], 100, "auto", 104),
        ([16, 104], 105, "auto", 112), ([16, 104], 12, 16, 16), ([], 12, 40, 40),
    ],
)  # fmt: skip
def test_a_bundle_of_several_has_the_largest_rank_and_grows_where_that_has_no_room(
    ranks: list[int], names: int, given: Any, rank: Any
) -> None:
    assert with_rank(ranks, names, EraseSettings(rank=given)).rank == rank


def test_a_folder_that_holds_something_is_left_alone(sd1_dir: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not ours"):
        compose(str(sd1_dir), list(parts.values()), tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_manifests_of_both_kinds_say_what_is_erased() -> None:
    one, two = PARTS["neon"].as_dict(), PARTS["cat"].as_dict()
    assert [part.concept for part in Erasures.of(one, {"requests": [two]})] == ["Neon", "cat"]
