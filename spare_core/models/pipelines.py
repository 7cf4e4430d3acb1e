"""Getting a diffusers pipeline into memory, with every weight from its file."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import nn

from spare_core.errors import ModelError
from spare_core.models.digest import plain_name
from spare_core.models.files import ModelFiles

_LOADING: Final = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, IndexError, SafetensorError
)  # fmt: skip
"""What the libraries raise about files and configurations that are wrong."""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Importing diffusers and transformers makes objects that stay; Python's collector would look through them a
    hundred times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_pipeline(files: ModelFiles, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a model, its weights in ``dtype``.

    Raises:
        ModelError: if diffusers cannot load it, or a weight is missing, did not load, or is not finite.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, files.pipeline_class)
    unchecked: dict[str, Any] = (
        {} if "XL" in files.pipeline_class else {"safety_checker": None, "requires_safety_checker": False}
    )
    # What is listed but not there, and does not matter to us.
    unchecked |= {name: None for name in files.absent() if not name.startswith(("tokenizer", "scheduler"))}
    common = {"dtype": dtype, "use_safetensors": True, "variant": files.variant}
    try:
        whole = {
            name: _whole(files, name, getattr(diffusers, files.index[name][1]), common)
            for name in (files.components[0], "vae")
        }
        pipeline = pipeline_class.from_pretrained(files.path, **common, **whole, **unchecked)
    except Exception as error:
        if not isinstance(error, _LOADING) and type(error) is not Exception:  # what tokenizers raises
            raise
        said = " ".join(str(error).split())
        if "look at the above report" in said:  # which transformers has printed
            said = "the weights of a text encoder have other sizes than its config.json says; fetch both again"
        raise ModelError(f"diffusers cannot load {files.path}: {said}") from None
    for component in (*files.components, "vae"):
        _check_finite(files, component, getattr(pipeline, component))
    for component in files.components[1:]:
        _check_loaded(files, component, getattr(pipeline, component))
    return pipeline


def load_as_users_do(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline that ``DiffusionPipeline.from_pretrained(folder)`` gives who knows nothing else of it; in ``dtype``,
    which only saves memory.

    Raises:
        ModelError: if there is none.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    except _LOADING as error:
        said = " ".join(str(error).split())
        raise ModelError(f"stock diffusers does not load {folder} by its path alone: {said}") from None


def _whole(files: ModelFiles, component: str, kind: Any, common: dict[str, Any]) -> nn.Module:
    """A network of diffusers' whose every weight was in its files: of one that was not, diffusers leaves a shape
    without numbers, and says so at its first use.

    Raises:
        ModelError: naming what is missing.
    """
    module, report = kind.from_pretrained(files.path, subfolder=component, output_loading_info=True, **common)
    missing = sorted(report["missing_keys"])
    if missing:
        several = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{files.path / component} lacks the weight {missing[0]!r}{several}, which its config.json asks for; fetch "
            "it again, or give the config.json that belongs to these weights"
        )
    loaded: nn.Module = module
    return loaded


def _check_finite(files: ModelFiles, component: str, module: nn.Module) -> None:
    """Refuse weights that are no numbers: every prediction of theirs is none either, which reads as a failed training.

    Raises:
        ModelError: naming the first.
    """
    weights = dict(module.named_parameters())
    # By their largest: one pass, and no sum that could overflow.
    largest = torch.stack([one.float() for one in torch._foreach_norm([*weights.values()], float("inf"))])
    if not torch.isfinite(largest).all():
        first = [*weights][int((~torch.isfinite(largest)).nonzero()[0])]
        raise ModelError(
            f"{files.path / component}: weight {first!r} has values that are not finite (NaN or infinite); fetch it "
            "again, or save it in a type that holds it"
        )


def check_same_schedule(files: ModelFiles, own: Any, ours: Any) -> None:
    """Refuse a pipeline whose scheduler ``own`` adds noise otherwise than ``ours``, which was made of its fields.

    Raises:
        ModelError: naming the scheduler.
    """
    theirs = getattr(own, "alphas_cumprod", None)
    # Schedulers that divide by the signal keep a little of it where it would be none.
    if theirs is None or not torch.allclose(theirs.cpu(), ours.alphas_cumprod, atol=1e-6):
        raise ModelError(
            f"{files.path}: {type(own).__name__} adds noise otherwise than DDIM with the same configuration does, "
            "which erasing and measuring use; choose a scheduler of the DDPM kind, for example DDIMScheduler"
        )


def _check_loaded(files: ModelFiles, component: str, module: nn.Module) -> None:
    """transformers leaves weights it finds no tensor for at random values and only warns; make that an error."""
    stored = dict(files.tensors(component))
    for name, parameter in module.named_parameters():
        tensor = stored.get(plain_name(name))
        if tensor is None or not torch.equal(tensor.to(parameter.dtype), parameter.detach().cpu()):
            raise ModelError(
                f"{files.path / component}: weight {name!r} was not loaded from its file; the model was saved by an "
                "incompatible release of transformers, save it again with the one that is installed"
            )
