"""The model card of an exported folder: what it does, by which figures, and what it does not promise."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from spare_core.adapters.manifest import sha256_in
from spare_core.adapters.modelspec import title
from spare_core.concepts.erasures import Erasures
from spare_core.models.hub import hub_model

CARD: Final = "README.md"
_LISTED: Final = 20
"""Names of a long list that the card has; the others are in spare.json."""
_MARKS: Final = re.compile(r"([\\`*_\[\]|~$])")
_USE: Final = {
    "diffusers": (
        'pipeline.load_lora_weights("THIS FOLDER", weight_name="pytorch_lora_weights.safetensors")\n'
        "pipeline.unload_lora_weights()  # the base model again, exactly"
    ),
    "sparse": (
        'delta = load_file("THIS FOLDER/sparse_delta.safetensors")  # safetensors.torch\n'
        'weight.view(-1)[delta[f"{layer}.indices"].long()] += delta[f"{layer}.values"]  # of each layer'
    ),
    "merged": 'pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER")',
}


def model_card(manifest: Mapping[str, Any], format: str, error: Mapping[str, Any] | None) -> str:
    """Markdown with the front matter that hubs read. Names come from lists of requests: they are data, and are shown as
    they are, whatever marks they hold."""
    base, erasures = manifest["base"], Erasures.of(manifest)
    parts, residuals = erasures.surrogates(), manifest.get("residuals", {})
    source = str(base.get("source", ""))
    hub = None if source.startswith("s3:") else hub_model(source)
    front: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["concept-erasure", "spare", *(["lora"] if format == "diffusers" else [])],
        **({"base_model": hub.name} if hub else {}),
    }
    worst = sorted(parts, key=lambda name: -residuals.get(name, 0.0))
    rows = [f"| {plain(name)} | {plain(parts[name])} | {_figure(residuals.get(name))} |" for name in worst[:_LISTED]]
    more = [f"\nThe {_LISTED} with the highest residual of {len(parts)}."] if len(parts) > _LISTED else []
    how = "Rounded to the base's type of numbers" if format == "merged" else "This form is an approximation"
    inexact = [
        f"{how}: relative error {error['overall']:.3g} over all layers, "
        f"{error['worst']:.3g} in the worst."
    ] if error and error["overall"] > 0 else []  # fmt: skip
    return "\n".join([
        "---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", "",
        f"# {plain(title(erasures))}", "",
        "What this changes in its base model: the prompts on the left are drawn as those on the right. They are "
        "suppressed as the residual measures it (1 is untouched, 0 overwritten), not deleted: who holds these weights "
        "and trains or searches for a way around can bring them back.", "",
        "| suppressed | drawn as | residual |", "|---|---|---|", *rows, *more, "",
        f"Mean drift of what is kept: {_figure(manifest.get('mean_drift'))} (0 is untouched).", *inexact, "",
        "## Use", "", "```python", _USE[format], "```", "",
        "## Made of", "",
        f"- base: {plain(hub.name) if hub else base.get('pipeline', 'a diffusers pipeline')}"
        f"{' at ' + plain(str(base['revision'])) if base.get('revision') else ''}, digest of its weights "
        f"`{base['digest']}`",
        f"- adapter: sha256 `{sha256_in(manifest)}`",
        f"- made by: spare-unlearning {manifest.get('versions', {}).get('spare-unlearning', '')}",
        "",
    ])  # fmt: skip


def plain(text: str) -> str:
    """A text on one line that Markdown and HTML show as it is."""
    return _MARKS.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
