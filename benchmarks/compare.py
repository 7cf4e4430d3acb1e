"""This project beside the trainer of the paper's authors, on the same machine, model, concepts, layers and judge.

    python -m benchmarks.compare --output out/compare

Makes an environment for each (minutes, once), which holds what it needs and nothing else: what is installed beside it
costs an import time and memory. PyPI's ``vision-unlearning`` 1.0.0 is given what its users bring: pictures of the
concept and of what is to be kept, which are not timed. Each erasure is a process; its wall seconds are from start to
exit. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import CONCEPTS, Bench
from spare_core.adapters.directory import load_adapter
from spare_core.adapters.low_rank import Adapter, DeltaUpdate
from spare_core.adapters.manifest import LORA
from spare_core.concepts.concept import Erasure
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.files.atomic import read_tensors, write_bytes
from spare_core.method.probes import draw_held_out
from spare_core.method.residual import Meter
from spare_core.method.settings import EraseSettings
from spare_core.runs.generate import draw, png

HERE = Path(__file__).parent
REQUIREMENTS = (
    "torch==2.13.0", "diffusers==0.30.3", "peft==0.17.1", "transformers==4.55.4", "accelerate==1.15.0",
    "datasets==4.4.1", "pydantic",
)  # fmt: skip
AUTHORS = "vision-unlearning==1.0.0"
RANK = 8
COLUMNS = ("wall s", "work s", "rows x", "peak MB", "UA", "IRA", "CRA", "residual", "drift", "KB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, help="where the two lie; default: beside the output")
    parser.add_argument("--concepts", nargs="*", help="only these of the twelve; default: three styles, three objects")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each")
    parser.add_argument("--lr", type=float, default=2e-3, help="of the authors' trainer")
    parser.add_argument("--steps", type=int, default=60, help="of the authors' trainer")
    parser.add_argument("--batch-size", type=int, default=8, help="of the authors' trainer, each side")
    parser.add_argument("--grid-seeds", type=int, default=1, help="of the judge's grid, of five")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    environments = options.environments or output / "environments"
    python = make_environment(environments / "authors", REQUIREMENTS, ("--no-deps", AUTHORS))
    ours = make_environment(environments / "spare", ("-c", str(HERE.parent / "constraints.txt"), str(HERE.parent)))
    chosen = [one for one in CONCEPTS if one[1] in options.concepts] if options.concepts else CONCEPTS[::2]
    bench = Bench(options.grid_seeds, 0)
    rows = []
    for kind, concept, surrogate in chosen:
        erasure = build_erasure("canvas", concept, surrogate, kind)  # type: ignore[arg-type]
        held_out = draw_held_out(bench.denoiser, Erasures(erasure), EraseSettings(), "report")
        for seed in range(options.seeds):
            for who in ("authors", "spare"):
                folder = output / f"{who}-{concept.replace(' ', '-')}-{seed}"
                if who == "authors":
                    folder = folder.with_name(f"{folder.name}-{options.lr:g}-{options.steps}-{options.batch_size}")
                    command = authors_job(python, bench, erasure, seed, folder, options)
                else:
                    command = [str(ours), str(HERE / "counted.py"), f"{folder}.counts.json", "spare", "erase",
                               "canvas", "--erase", concept, "--surrogate", surrogate, "--kind", kind,
                               "--seed", str(seed), "--output", str(folder)]  # fmt: skip
                facts = run_once(command, folder)
                adapter = read_adapter(folder)
                measured = Meter(bench.denoiser, held_out).measure(adapter)
                judged = bench.findings(erasure, adapter)["adapted"]
                row = {"who": who, "concept": concept, "seed": seed, **facts, **judged,
                       "residual": measured.residual, "drift": measured.mean_drift,
                       "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors"))}  # fmt: skip
                rows.append(row)
                print(line(f"{who} {concept} {seed}", [row]), flush=True)
    (output / "results.json").write_text(json.dumps(rows, indent=1))
    print("\n| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for who in ("authors", "spare"):
        print(line(who, [row for row in rows if row["who"] == who]))


def make_environment(folder: Path, *installs: Sequence[str]) -> Path:
    """The interpreter of an environment with what each of ``installs``, arguments of pip, says."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True)
        for arguments in installs:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *arguments], check=True)
        done.touch()
    return python


def authors_job(
    python: Path, bench: Bench, erasure: Erasure, seed: int, folder: Path, options: argparse.Namespace
) -> list[str]:
    """Draw the pictures that the trainer is given, write its job, and say how to run it."""
    pictures = folder.parent / f"pictures-{erasure.concept.replace(' ', '-')}"
    metafile = pictures / "pictures.json"
    if not metafile.exists():
        forget = [(erasure.concept, context) for context in erasure.contexts] * 4
        retain = [(name, context) for name in erasure.retained for context in erasure.contexts]
        entries: dict[str, list[dict[str, str]]] = {"forget": [], "retain": []}
        for side, cells in (("forget", forget), ("retain", retain)):
            texts = [erasure.prompt(*cell) for cell in cells]
            pixels = draw(bench.denoiser, [], texts, range(1000, 1000 + len(texts)), steps=12, guidance=4.0)
            for i, (cell, text) in enumerate(zip(cells, texts, strict=True)):
                path = pictures / side / f"{i}.png"
                write_bytes(path, png(pixels[i]))
                overwrite = erasure.prompt(erasure.surrogate, cell[1]) if side == "forget" else ""
                entries[side].append({"image": str(path), "text": text, "overwrite": overwrite})
        metafile.write_text(json.dumps(entries))
    settings = {
        "model_name_or_path": str(bench.denoiser.files.path), "output_dir": str(folder), "json_metafile": str(metafile),
        "lora_r": RANK, "lora_alpha": RANK, "resolution": bench.denoiser.resolution, "center_crop": True, "seed": seed,
        "per_device_train_batch_size": options.batch_size, "gradient_accumulation_steps": 1,
        "max_train_steps": options.steps, "lr_warmup_steps": 3, "learning_rate": options.lr,
        "cache_dir": str(pictures / "cache"),
    }  # fmt: skip
    job = folder.with_name(folder.name + ".job.json")
    counts = f"{folder}.counts.json"
    weights = {"forget_weight": 1.0, "retain_weight": 1.0}
    job.write_text(json.dumps({"settings": settings, "weights": weights, "counts": counts}))
    return [str(python), str(HERE / "authors_trainer.py"), str(job)]


def run_once(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Wall seconds, peak bytes and what was counted of a process; of an earlier one if it is there."""
    facts_file = folder.with_name(folder.name + ".facts.json")
    if facts_file.exists():
        found: dict[str, Any] = json.loads(facts_file.read_text())
        return found
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with folder.with_name(folder.name + ".log").open("w") as log:
        started = time.perf_counter()
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=quiet).returncode
        wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed; see {log.name}")
    facts = {"wall": round(wall, 2), **json.loads(Path(f"{folder}.counts.json").read_text())}
    facts_file.write_text(json.dumps(facts))
    return facts


def read_adapter(folder: Path) -> Adapter:
    """Ours, or a LoRA file as diffusers 0.30 names its tensors, whose scale is one."""
    if (folder / "spare.json").exists():
        return load_adapter(folder).adapter
    tensors, _ = read_tensors(folder / LORA)
    stems = [key.removesuffix(".lora.up.weight") for key in tensors if key.endswith(".lora.up.weight")]
    return Adapter(
        {
            stem.removeprefix("unet."): DeltaUpdate(
                tensors[f"{stem}.lora.up.weight"].float() @ tensors[f"{stem}.lora.down.weight"].float()
            )
            for stem in stems
        }
    )


def line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Means, as a row of the table."""

    def mean(key: str) -> float:
        return sum(row[key] for row in rows) / len(rows)

    values = (
        f"{mean('wall'):.1f}", f"{mean('seconds'):.1f}", f"{mean('forward_equivalents'):,.0f}",
        f"{mean('peak') / 1e6:.0f}", *(f"{mean(key):.3f}" for key in ("ua", "ira", "cra", "residual")),
        f"{mean('drift'):.4f}", f"{mean('bytes') / 1e3:.0f}",
    )  # fmt: skip
    return f"| {name} | " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
