"""Figures of an attack are entered in the evaluation of the same adapters, and what was found is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter
from spare_core.attacks.budgets import BUDGETS
from spare_core.attacks.evidence import attack_evaluated, check_entry, enter
from spare_core.canvas.judge import GridJudge
from spare_core.errors import InputError
from spare_core.evaluation.attacked import TARGETS, attack_figures, attack_lines, mean_success
from spare_core.evaluation.evaluate import evaluate
from spare_core.evaluation.report import summary_table
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import manifest_for, random_adapter
from tests.support.attacking import QUICK, SUITE

pytest_plugins = ("tests.support.attack_fixtures",)
pytestmark = pytest.mark.usefixtures("small_attacks")


@pytest.fixture(scope="module")
def evaluation(
    denoiser: UNetDenoiser,
    judge: GridJudge,
    stored: StoredAdapter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "evaluation"
    evaluate(denoiser, denoiser.files.digest(), [stored], SUITE, [], None, output, judge)
    return output


def test_an_evaluation_takes_over_the_figures_and_nothing_that_was_found(
    denoiser: UNetDenoiser,
    judge: GridJudge,
    stored: StoredAdapter,
    evaluation: Path,
) -> None:
    before = json.loads((evaluation / "evaluation.json").read_text())
    chosen = ["conditioning", "tampering"]
    base = denoiser.files.digest()
    report = attack_evaluated(denoiser, base, [stored], SUITE, judge, evaluation, "quick", chosen)
    assert json.loads((evaluation / "evaluation.json").read_text()) == json.loads(json.dumps(report))
    attacks = report.pop("attacks")
    assert json.loads(json.dumps(report)) == before
    assert attacks["budget"] == {"name": "quick", **QUICK.as_dict()}
    assert {*attacks["concepts"]["Neon Lines"]} == {*chosen}
    for attack in chosen:
        for target in TARGETS:
            assert {*attacks["concepts"]["Neon Lines"][attack][target]} <= {
                "shown", "interval", "pictures", "half", "worst",
            }  # fmt: skip
    assert {path.name for path in evaluation.iterdir()} == {"evaluation.json", *report["files"]}
    assert "attacks (quick)" in summary_table(enter(evaluation, {**attack_report(), "attacks": ["inversion"]}))


def attack_report() -> dict[str, Any]:
    """What ``spare attack`` returns, of two concepts, as far as an evaluation takes it over."""

    def targets(adapted: float | None) -> dict[str, Any]:
        shares = dict(zip(TARGETS, (1.0, 0.9, adapted), strict=True))
        return {target: {"shown": share, "interval": [0.0, 1.0], "file": "x"} for target, share in shares.items()}

    return {
        "budget": {"name": "quick"}, "seed": 1, "plain": {}, "attacks": ["inversion", "paraphrase"],
        "concepts": [
            {"concept": "Cat", "inversion": targets(0.25), "paraphrase": targets(None)},
            {"concept": "Rust", "inversion": targets(0.75), "paraphrase": targets(None)},
        ],
    }  # fmt: skip


def test_means_and_lines_are_of_what_is_known() -> None:
    figures = attack_figures(attack_report())
    assert mean_success(figures) == {
        "inversion/base": 1.0, "inversion/plain": 0.9, "inversion/adapted": 0.5,
        "paraphrase/base": 1.0, "paraphrase/plain": 0.9,
    }  # fmt: skip
    assert attack_lines(figures)[1:] == [
        "  inversion     0.75 of the pictures of Rust (base 1.00, plain erasure 0.90)",
        "  paraphrase    of no concept is anything known",
    ]
    assert "file" not in json.dumps(figures)


def write_other(folder: Path, denoiser: UNetDenoiser) -> Path:
    """An adapter of other weights."""
    save_adapter(folder, random_adapter(denoiser, "channel", seed=5), denoiser.lora_prefix, manifest_for(denoiser))
    return folder


def test_an_evaluation_of_something_else_is_refused(
    denoiser: UNetDenoiser,
    stored: StoredAdapter,
    evaluation: Path,
    tmp_path: Path,
) -> None:
    base, other = denoiser.files.digest(), load_adapter(write_other(tmp_path / "other", denoiser))
    check_entry(evaluation, base, [stored], SUITE)
    for part, arguments in (
        ("base model", ("0" * 64, [stored], SUITE)),
        ("adapters", (base, [other], SUITE)),
        ("adapters", (base, [stored, stored], SUITE)),
        ("suite", (base, [stored], dataclasses.replace(SUITE, name="other"))),
    ):
        with pytest.raises(InputError, match=f"evaluation of other {part}"):
            check_entry(evaluation, *arguments)
    with pytest.raises(InputError, match="is no evaluation"):
        check_entry(tmp_path / "other", base, [stored], SUITE)


def test_the_budgets_are_those_that_a_policy_may_name() -> None:
    assert [*BUDGETS] == ["quick", "standard", "paper"]
