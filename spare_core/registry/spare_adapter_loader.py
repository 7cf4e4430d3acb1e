"""Travels inside a registered adapter, and finds and checks the base model for MLflow's ``diffusers`` flavour.

The flavour knows hub ids and absolute paths, looks at no digest, and loads pickles where a hub has nothing else. Here
the base is found, compared with the digest that the adapter was trained for, and handed to the flavour as a folder; all
the rest is the flavour's. MLflow imports this file from the adapter's ``code`` folder, so it needs nothing of SPARE,
except for a base on S3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUNDLED = "./base"


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Any:
    from mlflow import diffusers
    from mlflow.models import Model
    from spare_base_digest import digest_of_folder  # type: ignore[import-not-found]

    described = Model.load(path)
    config = dict(model_config or {})
    source = config.get("base_model") or BUNDLED
    folder = _found(source, Path(path), described.flavors["diffusers"].get("base_model_revision"))
    wanted = described.metadata["spare"]["base_digest"]
    if digest_of_folder(folder) != wanted:
        raise RuntimeError(f"{source} is not the base model that this adapter was trained for ({wanted[:12]}…)")
    return diffusers._load_pyfunc(path, {**config, "base_model": str(folder)})


def _found(source: str, adapter: Path, revision: str | None) -> Path:
    """The base's folder: within the adapter, in a local cache of S3 or of the hub, or where it was given."""
    if source == BUNDLED:
        return adapter / BUNDLED
    if source.lower().startswith("s3://"):
        return _fetched(source)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from spare_base_digest import wanted_of_hub

    return Path(snapshot_download(source, revision=revision, allow_patterns=wanted_of_hub(source, revision)))


def _fetched(uri: str) -> Path:
    try:
        from spare_core import find_model
    except ImportError:
        raise RuntimeError(
            f"the base model of this adapter is {uri}; to load it from there, install spare-unlearning[server], or "
            "give model_config={'base_model': a local copy}"
        ) from None
    return find_model(uri).path
