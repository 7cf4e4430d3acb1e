"""An evaluation is complete, says what it rests on, and is refused before any work when it cannot be made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter
from spare_core.canvas.judge import GridJudge
from spare_core.concepts.concept import Erasure
from spare_core.errors import AdapterError, ConceptError, InputError, OutputError, SettingsError
from spare_core.evaluation.evaluate import evaluate
from spare_core.evaluation.report import summary_table
from spare_core.evaluation.report_files import check_report_output, read_report
from spare_core.method.settings import EraseSettings
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import load_tiny, manifest_for, random_adapter
from tests.support.grids import ACCURACY, small_suite
from tests.tiny import PIXELS

SUITE = small_suite()
SETTINGS = EraseSettings(heldout=2, example_steps=1, rank=2, dtype="float32", device="cpu")
PROFILE = {"edges": [0, 500, 1000], "gap": [0.1, 0.3], "probabilities": [0.4, 0.6]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads another's grids, or the user's."""
    monkeypatch.setenv("SPARE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(
    folder: Path, denoiser: UNetDenoiser, concept: str = "Neon Lines", seed: int = 0, keep: tuple[str, ...] = ("Rust",)
) -> StoredAdapter:
    """A random adapter with the manifest of an erasure."""
    template = "A {context} image in {concept} style."
    erasure = Erasure(concept, "Photo", "style", keep if concept != "Rust" else (), template, ("Cat", "Dog"))
    manifest = {**manifest_for(denoiser), **erasure.as_dict(), "settings": SETTINGS.as_dict()}
    adapter = random_adapter(denoiser, "channel", seed=seed)
    save_adapter(folder, adapter, denoiser.lora_prefix, {**manifest, "timestep_profile": PROFILE})
    return load_adapter(folder)


def run(denoiser: UNetDenoiser, judge: GridJudge, output: Path, *adapters: StoredAdapter, **changes: Any) -> Any:
    """:func:`evaluate` with what most tests share."""
    values = {"suite": SUITE, "erased": ["neon lines"], "kind": "style", **changes}
    return evaluate(denoiser, denoiser.files.digest(), adapters, output=output, judge=judge, **values)


def test_an_evaluation_is_complete(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    """Every field of the contract, as JSON, with the pictures it names."""
    adapter = stored(tmp_path / "adapter", denoiser)
    stages: list[str] = []
    output = tmp_path / "new" / "evaluation"
    report = run(denoiser, judge, output, adapter, on_progress=lambda name, done, total: stages.append(name))
    written = json.loads((output / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert written["schema"] == "spare.evaluation/1"
    assert (written["suite"], written["erased"], written["kinds"]) == ("small", ["Neon Lines"], ["style"])
    assert written["judge"] == {"name": "canvas", "digest": judge.digest, "accuracy": ACCURACY}
    assert (written["sampler"], written["steps"], written["guidance"]) == ("DDIM, eta 0", 2, 3.0)
    assert (written["seeds"], written["subset"], written["resolution"]) == ([188, 288], None, PIXELS)
    assert written["counts"]["pictures"] == 18
    for side in ("base", "adapted"):
        assert 0 <= written[side]["ua"] <= 1
        assert written[side]["fid"] > 0
        assert set(written[side]["intervals"]) >= {"ua", "ira", "cra", "cra_erased", "fid"}
    assert written["residual"] > 0
    assert set(written["drift"]) == {"Photo", "Rust", "(empty prompt)"}
    assert written["damage"]["kept"]["pictures"] == 12
    assert len(written["per_concept"]) == 6
    assert written["adapters"][0]["sha256"] == adapter.sha256
    assert written["adapters"][0]["base_matches"] is True
    assert written["base_digest"] == denoiser.files.digest()
    assert {"measure", "base", "adapted"} <= set(stages)
    assert set(stages) == set(written["seconds"])
    assert set(written["files"]) == {"contact_sheet.png", "timesteps.png"}
    for name, facts in written["files"].items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == facts["sha256"]
    assert sorted(file.name for file in output.iterdir()) == ["contact_sheet.png", "evaluation.json", "timesteps.png"]
    assert "UA" in summary_table(report)


def test_drift_is_that_of_the_suite_and_of_what_the_erasure_names_besides(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    """Names of the suite are asked about as the suite has them, however the erasure wrote them."""
    adapter = stored(tmp_path / "adapter", denoiser, keep=("rust", "Mosaic"))
    report = run(denoiser, judge, tmp_path / "out", adapter)
    assert list(report["drift"]) == ["Photo", "Rust", "Mosaic", "(empty prompt)"]


def test_without_adapters_only_the_base_is_evaluated(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    report = run(denoiser, judge, tmp_path / "out")
    assert report["adapted"] is report["residual"] is report["drift"] is report["damage"] is None
    assert report["adapters"] == []
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["contact_sheet.png", "evaluation.json"]


def test_the_same_evaluation_again_gives_the_same_figures_from_the_cache(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    """And takes the place of the first one, plots that are no longer its own included."""
    adapter = stored(tmp_path / "adapter", denoiser)
    first = run(denoiser, judge, tmp_path / "out", adapter)
    again = run(denoiser, judge, tmp_path / "out", adapter)
    varying = ("seconds", "base_cached")
    assert (first["base_cached"], again["base_cached"]) == (False, True)
    assert {k: v for k, v in first.items() if k not in varying} == {k: v for k, v in again.items() if k not in varying}
    run(denoiser, judge, tmp_path / "out")
    assert not (tmp_path / "out" / "timesteps.png").exists()


def test_several_erased_concepts_are_evaluated_together(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    """All adapters on; each erasure is measured, an adapter for something else is not."""
    adapters = [stored(tmp_path / name, denoiser, name, i) for i, name in enumerate(("Neon Lines", "Rust", "Winter"))]
    report = run(denoiser, judge, tmp_path / "out", *adapters, erased=["Rust", "neon lines", "RUST"])
    assert report["erased"] == ["Rust", "Neon Lines"]
    assert report["counts"]["ua"] == {"pictures": 12, "concepts": 2}
    assert list(report["residuals"]) == ["Neon Lines", "Rust"]
    assert report["residual"] == pytest.approx(sum(row["residual"] for row in report["measured"]) / 2)
    assert len(report["adapters"]) == 3


def bundle(folder: Path, denoiser: UNetDenoiser) -> StoredAdapter:
    """A random adapter that is said to erase two styles and an object."""
    stored(folder, denoiser)
    manifest = json.loads((folder / "spare.json").read_text())
    neon, rust = (Erasure(name, "Photo", "style", (), "{concept}", ()).as_dict() for name in ("Neon Lines", "Rust"))
    dog = Erasure("Dog", "Cat", "object", (), "{concept}", ()).as_dict()
    rest = {name: value for name, value in manifest.items() if name not in neon}
    (folder / "spare.json").write_text(json.dumps({**rest, "requests": [neon, rust, dog]}))
    return load_adapter(folder)


def test_of_a_bundle_all_that_it_erases_is_evaluated(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    """Of both kinds at once, each concept by itself too, and in the pictures."""
    report = run(denoiser, judge, tmp_path / "out", bundle(tmp_path / "one", denoiser), erased=[], kind=None)
    assert (report["erased"], report["kinds"]) == (["Neon Lines", "Rust", "Dog"], ["style", "object"])
    assert report["aside_pictures"] == 0
    assert report["counts"]["ua"] == {"pictures": 18, "concepts": 3}
    assert report["counts"]["kept_pictures"] == 4  # photos of cats and towers
    assert report["adapted"]["ira"] == report["adapted"]["cra"]
    rows = {row["concept"]: row for row in report["per_concept"]}
    assert [name for name, row in rows.items() if row["erased"]] == ["Neon Lines", "Rust", "Dog"]
    low, high = rows["Dog"]["after"]["interval"]
    assert low <= rows["Dog"]["after"]["accuracy"] <= high
    assert len(report["confusion"]["labels"]) == 7
    assert "erased style and object: Neon Lines, Rust, Dog" in summary_table(report)


def test_a_bundle_that_grew_is_compared_with_what_it_was(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    """The report goes on from the one before, and shows what each change left of each concept."""
    neon, two = stored(tmp_path / "neon", denoiser), bundle(tmp_path / "two", denoiser)
    first = run(denoiser, judge, tmp_path / "first", neon, erased=[], kind=None)
    assert first["rebounds"] == [] and "matrix.png" not in first["files"]
    grown = run(denoiser, judge, tmp_path / "grown", two, erased=[], kind=None, before=read_report(tmp_path / "first"))
    assert [row["added"] for row in grown["history"]] == [["Neon Lines"], ["Rust", "Dog"]]
    assert grown["history"][:1] == first["history"]
    (rebound,) = grown["rebounds"]
    assert (rebound["concept"], rebound["after"]) == ("Neon Lines", "adding Rust, Dog")
    assert (rebound["then"], rebound["now"]) == (first["residuals"]["Neon Lines"], grown["residuals"]["Neon Lines"])
    assert (tmp_path / "grown" / "matrix.png").read_bytes().startswith(b"\x89PNG")
    base = run(denoiser, judge, tmp_path / "base")
    for before, said in ((base, "is of no adapter"), ({**first, "base_digest": "0" * 64}, "is of the base model 000")):
        with pytest.raises(InputError, match=said):
            run(denoiser, judge, tmp_path / "out", two, before=before)
    assert not (tmp_path / "out").exists()


def test_an_alias_is_asked_about_where_the_suite_knows_it(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    """What is left of it is measured everywhere."""
    folder = stored(tmp_path / "one", denoiser).folder
    manifest = json.loads((folder / "spare.json").read_text())
    (folder / "spare.json").write_text(json.dumps({**manifest, "kept": [], "aliases": ["rust", "glow"]}))
    report = run(denoiser, judge, tmp_path / "out", load_adapter(folder), erased=[], kind=None)
    assert report["erased"] == ["Neon Lines", "Rust"]
    assert set(report["residuals"]) == {"Neon Lines", "rust", "glow"}
    assert list(report["adapters"][0]["erased"]) == ["Neon Lines", "rust", "glow"]


def test_names_say_of_which_kind_they_are(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    """Unless a suite has both."""
    adapter = bundle(tmp_path / "one", denoiser)
    report = run(denoiser, judge, tmp_path / "out", adapter, erased=["dog", "rust"], kind=None)
    assert (report["erased"], report["aside"]) == (["Rust", "Dog"], {"style": ["Neon Lines"], "object": []})
    suite = small_suite(styles=("Neon Lines", "Photo", "Cat"))
    with pytest.raises(ConceptError, match="a style and an object 'cat'; say which by --kind"):
        run(denoiser, judge, tmp_path / "out", suite=suite, erased=["cat"], kind=None)


def test_what_a_bundle_erases_besides_is_set_aside(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    """A style and an object that nobody asked about: their pictures are in no figure, and are drawn all the same."""
    report = run(denoiser, judge, tmp_path / "out", bundle(tmp_path / "one", denoiser), erased=["neon lines"])
    assert report["aside"] == {"style": ["Rust"], "object": ["Dog"]}
    assert report["aside_pictures"] == 6 + 4
    assert (report["counts"]["erased_pictures"], report["counts"]["kept_pictures"]) == (4, 4)
    assert {row["concept"] for row in report["per_concept"]} == {"Neon Lines", "Photo", "Cat", "Tower"}
    assert set(report["residuals"]) == {"Neon Lines", "Rust", "Dog"}
    assert list(report["adapters"][0]["erased"]) == ["Neon Lines", "Rust", "Dog"]


def test_a_quick_look_says_that_it_is_one(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    report = run(denoiser, judge, tmp_path / "out", suite=SUITE.restricted(seeds=1, objects_per_style=2))
    assert report["subset"] == {"seeds": 1, "of_seeds": 2, "objects_per_style": 2, "of_objects": 3}
    assert report["seeds"] == [188]
    assert report["counts"]["pictures"] == 7  # two objects of each style, and all three of the erased one
    assert report["counts"]["ua"] == {"pictures": 3, "concepts": 1}
    assert "part of it" in summary_table(report)


def test_an_object_can_be_the_erased_concept(denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path) -> None:
    report = run(denoiser, judge, tmp_path / "out", erased=["tower"], kind="object")
    assert (report["erased"], report["kinds"]) == (["Tower"], ["object"])
    assert report["counts"]["ira"] == {"pictures": 12, "concepts": 2}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"erased": ["Neon Line"]}, ConceptError, "nearest: 'Neon Lines'"),
        ({"erased": ["Cat"]}, ConceptError, "no style 'Cat'"),
        ({"kind": "person"}, SettingsError, "style and object"),
        ({"erased": []}, SettingsError, "--erased"),
        ({"erased": [], "kind": None}, SettingsError, "--erased"),
        ({"erased": ["Neon Line"], "kind": None}, ConceptError, "nearest: 'Neon Lines'"),
        ({"erased": ["Neon Lines", "Photo", "Rust"]}, InputError, "at least one other"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_before_any_work(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], error: type[Exception], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(denoiser, "generate", lambda *_args, **_kwargs: pytest.fail("it drew"))
    with pytest.raises(error, match=message):
        run(denoiser, judge, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_architecture_is_refused_before_any_work(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path, sdxl_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = stored(tmp_path / "adapter", load_tiny(sdxl_dir))
    monkeypatch.setattr(denoiser, "generate", lambda *_args, **_kwargs: pytest.fail("it drew"))
    with pytest.raises(AdapterError):
        run(denoiser, judge, tmp_path / "out", adapter)


def test_a_prompt_longer_than_the_model_reads_is_refused(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path
) -> None:
    suite = small_suite(template="{object} " + "very " * 100 + "{style}")
    with pytest.raises(ConceptError, match="tokens long"):
        run(denoiser, judge, tmp_path / "out", suite=suite)


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"evaluation.json": "{}"}, {"evaluation.json": "no JSON"}])
def test_a_folder_that_holds_something_else_is_refused(
    denoiser: UNetDenoiser, judge: GridJudge, tmp_path: Path, content: dict[str, str]
) -> None:
    (tmp_path / "out").mkdir()
    for name, text in content.items():
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(OutputError, match="no evaluation of ours"):
        run(denoiser, judge, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        run(denoiser, judge, tmp_path / "file")


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("contact_sheet.png", ".evaluation.json.123.partial"):
        (tmp_path / name).write_text("half")
    check_report_output(tmp_path)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        check_report_output(tmp_path)
