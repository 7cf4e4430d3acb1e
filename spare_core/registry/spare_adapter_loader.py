"""Travels inside a registered adapter and tells MLflow's ``diffusers`` flavour where the base model is.

The flavour knows hub ids and absolute paths. A base that lies in the adapter's own folder, or on S3, has neither; all
the rest is the flavour's. MLflow imports this file from the adapter's ``code`` folder, so it needs nothing of SPARE,
except for a base on S3: that is fetched and checked by ``spare_core``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUNDLED = "./base"


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Any:
    from mlflow import diffusers

    config = dict(model_config or {})
    base = config.get("base_model") or BUNDLED
    if base == BUNDLED:
        config["base_model"] = str(Path(path) / BUNDLED)
    elif base.lower().startswith("s3://"):
        config["base_model"] = str(_fetched(base, Path(path)))
    return diffusers._load_pyfunc(path, config)


def _fetched(uri: str, adapter: Path) -> Path:
    """The base in the local cache, if it is the one that the adapter was trained for."""
    from mlflow.models import Model

    try:
        from spare_core.model_files import find_model
    except ImportError:
        raise RuntimeError(
            f"the base model of this adapter is {uri}; to load it from there, install spare-unlearning[server], or "
            "give model_config={'base_model': a local copy}"
        ) from None
    files = find_model(uri)
    wanted = Model.load(str(adapter)).metadata["spare"]["base_digest"]
    if files.digest() != wanted:
        raise RuntimeError(f"{uri} is no longer the base model that this adapter was trained for ({wanted[:12]}…)")
    return files.path
