"""Getting a diffusers pipeline into memory, with every weight from its file."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from spare_core.errors import ModelError
from spare_core.models.digest import plain_name
from spare_core.models.files import ModelFiles


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
        ModelError: if diffusers cannot load it, or weights of a text encoder did not load.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, files.pipeline_class)
    unchecked = {} if "XL" in files.pipeline_class else {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipeline = pipeline_class.from_pretrained(
            files.path, dtype=dtype, use_safetensors=True, variant=files.variant, **unchecked
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"diffusers cannot load {files.path}: {error}") from None
    for component in files.components[1:]:
        _check_loaded(files, component, getattr(pipeline, component))
    return pipeline


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
