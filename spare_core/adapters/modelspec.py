"""What tools show of a LoRA file: the header that Stability's ModelSpec describes, and kohya's own keys.

ModelSpec 1.0.1: https://github.com/Stability-AI/ModelSpec. By kohya's ``ss_`` keys A1111 and ComfyUI sort LoRAs by the
model they are for.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from spare_core.adapters.manifest import MANIFEST, sha256_in
from spare_core.concepts.erasures import Erasures

IMPLEMENTATION: Final = "https://github.com/huggingface/diffusers"
_ALIGNED: Final = 8


class _Family(NamedTuple):
    """How ModelSpec and kohya call a family of models, and the side of its pictures in pixels."""

    architecture: str
    version: str
    side: int


def _family(base: Mapping[str, Any]) -> _Family:
    velocity = base.get("prediction_type") == "v_prediction"
    if base.get("pipeline") == "StableDiffusionXLPipeline":
        return _Family("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", 1024)
    if velocity:
        return _Family("stable-diffusion-v2-768-v/lora", "sd_v2_v", 768)
    return _Family("stable-diffusion-v1/lora", "sd_v1", 512)


def title(erasures: Erasures) -> str:
    """A name for what an adapter does."""
    parts = erasures.surrogates()
    if len(parts) > 1:
        return f"{len(parts)} concepts suppressed (SPARE)"
    ((concept, surrogate),) = parts.items()
    return f"{concept} suppressed, drawn as {surrogate} (SPARE)"


def modelspec(folder: Path, manifest: Mapping[str, Any], rank: int, tensors: bytes) -> dict[str, str]:
    """The header of a LoRA of ``rank`` made from an adapter; ``tensors`` are the bytes behind the header. The date is
    when the adapter was written, so the same adapter gives the same file."""
    base, erasures = manifest["base"], Erasures.of(manifest)
    family = _family(base)
    side = base.get("resolution") or family.side
    written = datetime.datetime.fromtimestamp(int((folder / MANIFEST).stat().st_mtime), datetime.UTC)
    gone = "; ".join(f"{concept} as {surrogate}" for concept, surrogate in erasures.surrogates().items())
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": title(erasures),
        "modelspec.description": (
            f"Suppresses {gone}; residual {manifest['residual']:.3f}, mean drift {manifest['mean_drift']:.4f} as "
            "SPARE measures them. Made to be loaded at strength 1."
        ),
        "modelspec.date": written.isoformat(),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if base.get("prediction_type") == "v_prediction" else "epsilon",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(tensors).hexdigest()}",
        "modelspec.usage_hint": "strength 1; below it what is suppressed comes back in part",
        "ss_base_model_version": family.version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "spare.adapter_sha256": sha256_in(manifest),
        "spare.base_digest": str(base["digest"]),
    }


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file's ``content``, and the bytes of its tensors."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file's ``content`` with other metadata, in the order given: safetensors' own writer orders several
    keys by chance, and the same adapter is to give the same bytes."""
    header, tensors = split(content)
    header.pop("__metadata__", None)
    written = json.dumps({"__metadata__": dict(metadata), **header}, separators=(",", ":")).encode()
    written += b" " * (-len(written) % _ALIGNED)
    return len(written).to_bytes(8, "little") + written + tensors
