"""Adapters and evaluations to register: random weights in the tiny model, and figures of one's choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spare_core.adapters.directory import StoredAdapter, load_adapter, save_adapter
from spare_core.adapters.manifest import MANIFEST
from spare_core.evaluation.gate import Policy
from spare_core.models.unet import UNetDenoiser
from spare_core.registry.client import connect
from spare_core.registry.models import RegisteredVersion, get_version, judge
from spare_core.registry.registering import register
from spare_core.registry.tracking import stage_run
from spare_core.store import Store, open_store
from tests.support.adapters import manifest_for, random_adapter


def write_adapter(folder: Path, denoiser: UNetDenoiser, concept: str, seed: int = 0) -> StoredAdapter:
    """A channel-masked adapter; another seed is another adapter."""
    manifest = {**manifest_for(denoiser), "concept": concept, "kind": "style", "residual": 0.1, "mean_drift": 0.01}
    save_adapter(folder, random_adapter(denoiser, "channel", seed=seed), denoiser.lora_prefix, manifest)
    return load_adapter(folder)


def set_source(adapter: Path, source: str) -> None:
    """Say that an adapter's base was given as ``source``."""
    manifest = json.loads((adapter / MANIFEST).read_text())
    manifest["base"]["source"] = source
    (adapter / MANIFEST).write_text(json.dumps(manifest))


def figures(**changes: Any) -> dict[str, Any]:
    """What ``spare evaluate canvas --seeds 1`` measured on a good erasure, as far as the gate reads it."""
    report: dict[str, Any] = {
        "schema": "spare.evaluation/1",
        "erased": ["Neon Lines"],
        "base": {
            "ua": 0.0, "ira": 1.0, "cra": 0.986, "cra_erased": 0.85, "fid": 0.732,
            "intervals": {
                "ua": [0.0, 0.161], "ira": [0.983, 1.0], "cra": [0.969, 1.0], "cra_erased": [0.64, 0.948],
                "fid": [0.208, 1.149],
            },
        },
        "adapted": {
            "ua": 1.0, "ira": 1.0, "cra": 0.982, "cra_erased": 1.0, "fid": 0.723,
            "intervals": {
                "ua": [0.839, 1.0], "ira": [0.983, 1.0], "cra": [0.962, 0.996], "cra_erased": [0.839, 1.0],
                "fid": [0.196, 1.136],
            },
        },
        "per_concept": [
            {
                "concept": "Neon Lines", "kind": "style", "erased": True, "pictures": 20,
                "before": {"accuracy": 1.0}, "after": {"accuracy": 0.0, "interval": [0.0, 0.161]},
                "becomes": {"surrogate": "Photo", "before": 0.0, "after": 1.0},
            },
            {
                "concept": "Photo", "kind": "style", "erased": False, "pictures": 20,
                "before": {"accuracy": 1.0}, "after": {"accuracy": 0.95}, "becomes": None,
            },
        ],
        "judge": {"accuracy": {"renderings": {"objects": 1.0, "styles": 1.0}}},
        "residual": 0.065,
        "residuals": {"Neon Lines": 0.065},
        "drift": {"Photo": 0.0044, "Rust": 0.007, "(empty prompt)": 0.0023},
        "mean_drift": 0.003,
        "unnamed_drift": 0.005,
        "damage": {
            "kept": {"pictures": 220, "base": {"damaged": 0.014}, "adapted": {"damaged": 0.009}},
            "erased": {"pictures": 20, "base": {"damaged": 0.05}, "adapted": {"damaged": 0.0}},
        },
    }  # fmt: skip
    return {**report, **changes}


FORGOT_NOTHING = {
    **figures()["adapted"], "ua": 0.0, "intervals": {**figures()["adapted"]["intervals"], "ua": [0.0, 0.161]},
}  # fmt: skip


def write_evaluation(folder: Path, stored: StoredAdapter, **changes: Any) -> Path:
    """An evaluation of one adapter, with a contact sheet that is no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    report = figures(
        adapters=[{"sha256": stored.sha256}], base_digest=stored.base_digest, files={"contact_sheet.png": {}}, **changes
    )
    (folder / "contact_sheet.png").write_bytes(b"not drawn")
    (folder / "evaluation.json").write_text(json.dumps(report))
    return folder


def register_one(
    folder: Path, denoiser: UNetDenoiser, concept: str, seed: int = 0, good: bool = True, judged: bool = True,
    store: Store | None = None,
) -> RegisteredVersion:  # fmt: skip
    """Register an adapter with its evidence in a request of its own, and have the gate judge it.

    The evidence goes to ``store``, or to "store" in ``folder``.
    """
    stored = write_adapter(folder / "adapter", denoiser, concept, seed)
    changes = {} if good else {"adapted": FORGOT_NOTHING}
    evaluation = write_evaluation(folder / "evaluation", stored, **changes)
    store = store or open_store(str(folder / "store"))
    with stage_run(f"request {concept} {seed}", "register", "kfp-1") as run:
        version = register(run, store, stored.folder, evaluation)
    if not judged:
        return version
    judge(version, store, Policy.from_file())
    return get_version(connect(), version.name, version.version)
