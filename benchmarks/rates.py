"""What ``lr: auto`` finds, beside fixed rates, on models of other kinds; and what the closed-form start brings.

    python -m benchmarks.rates canvas tiny out/narrow

``tiny`` is three random-weight pipelines, SD 1.x, SD 2.x (v-prediction) and SDXL, as the tests build them. A directory
is a model that knows Canvas's concepts (benchmarks/other_widths.py makes one). Prints residual / mean drift of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.saliency import choose_masks
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.runs.stages import make_repeatable
from tests.tiny import build_sd1, build_sd2_v, build_sdxl

RATES = (2.5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
CONCEPTS = (("style", "Neon Lines", "Pencil Drawing"), ("object", "Cat", "Dog"))
TINY: dict[str, Callable[[Path], Path]] = {"SD 1.x": build_sd1, "SD 2.x v": build_sd2_v, "SDXL": build_sdxl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    make_repeatable()
    print("| model, concept | start | " + " | ".join(f"{rate:g}" for rate in RATES) + " | auto | without start, auto |")
    print("|---|" + "---|" * (len(RATES) + 3))
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            if model == "tiny":
                for name, build in TINY.items():
                    show(f"random {name}", str(build(Path(folder) / name.replace(" ", "-"))), *CONCEPTS[0])
            else:
                for concept in CONCEPTS:
                    show(Path(model).name, model, *concept)


def show(name: str, model: str, kind: str, concept: str, surrogate: str) -> None:
    """One line of the table."""
    base = EraseSettings(dtype="float32")
    denoiser = load_denoiser(model, precision="float32")
    erasure = build_erasure("canvas", concept, surrogate, kind)  # type: ignore[arg-type]
    prepared = prepare(denoiser, Erasures(erasure), base)
    masks = choose_masks(denoiser, prepared.bank, prepared.profile, base)

    def run(**changes: object) -> tuple[str, str]:
        """What it came to, and the rate."""
        state, measured, _ = overwrite(prepared, dataclasses.replace(base, **changes), masks)  # type: ignore[arg-type]
        return f"{measured.residual:.3f}/{measured.mean_drift:.4f}", f"{state.lr:g}"

    start, _ = run(enough_residual=1.0, enough_drift=1.0)
    fixed = [run(lr=rate)[0] for rate in RATES]
    found, without = run(), run(closed_form=False)
    cells = [f"{name}, {concept}", start, *fixed, " at ".join(found), " at ".join(without)]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
