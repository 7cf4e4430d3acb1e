"""An adapter as MLflow's native ``diffusers`` flavour stores it, with a base model that any machine finds.

What of the base goes along depends on where it is:

- a hub id: nothing; the commit that was erased from is pinned, else the flavour pins the latest;
- ``s3://``: nothing; it is fetched when the adapter is loaded;
- Canvas, a local directory, or a single file here or on a hub: the pipeline's files, in the folder ``base``. Nobody
  else could find them; who minds the room puts the base on S3 or a hub.

Wherever it comes from, what is loaded must have the digest that the adapter was trained for.

``adapter_weights`` is a whole adapter directory of ours (weights and ``spare.json``).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from spare_core.adapters.directory import StoredAdapter
from spare_core.adapters.manifest import LORA, MANIFEST
from spare_core.errors import ModelError, RegistryInputError
from spare_core.files.addresses import is_s3
from spare_core.models import digest
from spare_core.models.files import find_model
from spare_core.models.hub import hub_model
from spare_core.registry.client import asking
from spare_core.registry.spare_adapter_loader import BUNDLED

_LOADER: Final = Path(__file__).with_name("spare_adapter_loader.py")
_DIGEST: Final = "spare_base_digest.py"
"""The name by which the loader imports what computes the base's digest."""
_STEPS: Final = 20
_GUIDANCE: Final = 4.0


def package(folder: Path, stored: StoredAdapter, model: Any) -> None:
    """Write ``folder``, a new MLflow model directory, from an adapter; ``model`` is its ``mlflow.models.Model``.

    Raises:
        RegistryInputError: for a weight mask, which no plain LoRA can hold.
        ModelError: if the base is a local directory that is not here, or is another than the adapter was trained for.
    """
    from mlflow import diffusers

    check_lora(stored)
    source = str(stored.manifest["base"]["source"])
    hub = None if is_s3(source) else hub_model(source)
    bundled = not is_s3(source) and (hub is None or hub.file is not None)
    reference = BUNDLED if bundled else hub.name if hub else source
    base = _bundle(stored, source) if bundled else {}
    adapter = folder.with_name(f"{folder.name}-adapter")
    adapter.mkdir()
    for name in (LORA, MANIFEST):
        shutil.copyfile(stored.folder / name, adapter / name)
    code = folder.with_name(f"{folder.name}-code")
    code.mkdir()
    shutil.copyfile(digest.__file__, code / _DIGEST)
    with asking("package the adapter"):
        diffusers.save_model(
            str(adapter), str(folder), reference, mlflow_model=model, signature=_signature(),
            code_paths=[str(_LOADER), str(code / _DIGEST)],
            metadata={"spare": {"base_digest": stored.base_digest, "adapter_sha256": stored.sha256}},
        )  # fmt: skip
    # Without a configuration, MLflow ignores what a user gives as model_config: the flavour forgets to declare it.
    pyfunc = model.flavors["python_function"]
    pyfunc["config"] = {"base_model": reference, "device": None, "torch_dtype": "auto"}
    pyfunc["loader_module"] = _LOADER.stem
    if hub and not bundled:
        # What was erased from; without it the flavour takes what is the hub's latest by now.
        commit = stored.manifest["base"].get("revision") or hub.revision
        if commit:
            model.flavors["diffusers"]["base_model_revision"] = commit
    model.save(str(folder / "MLmodel"))
    for name, file in base.items():
        place = folder / BUNDLED / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, Path):
            place.symlink_to(file.resolve())
        else:
            place.write_text(file, encoding="utf-8")


def check_lora(stored: StoredAdapter) -> None:
    """Refuse an adapter that is no plain LoRA.

    Raises:
        RegistryInputError: saying which masks are.
    """
    if LORA not in stored.manifest["files"]:
        raise RegistryInputError(
            f"{stored.folder} has a weight mask: it is a sparse delta, no LoRA, and MLflow's diffusers flavour cannot "
            "hold it; erase with --mask channel or --mask module"
        )


def _signature() -> Any:
    """Prompts in, PNG files out; steps and guidance are those of our figures, height and width the model's own."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),  # a named column would refuse a plain list of prompts
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema([
            ParamSpec("num_inference_steps", DataType.integer, _STEPS),
            ParamSpec("guidance_scale", DataType.double, _GUIDANCE),
            ParamSpec("height", DataType.integer, None),
            ParamSpec("width", DataType.integer, None),
            ParamSpec("negative_prompt", DataType.string, ""),
        ]),
    )  # fmt: skip


def _bundle(stored: StoredAdapter, source: str) -> dict[str, Path | str]:
    """The base's files by their name in the bundle; what is written anew, as text."""
    files = find_model(source)
    if files.digest() != stored.base_digest:
        raise ModelError(
            f"{source!r} is not the base model that {stored.folder} was trained for ({stored.base_digest[:12]}…); "
            "put that one in its place, or erase again"
        )
    bundle: dict[str, Path | str] = {"model_index.json": files.present_index()}
    for component in files.present():
        bundle |= {f"{component}/{name}": file for name, file in files.plain_files(component)}
    return bundle
