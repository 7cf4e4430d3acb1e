"""What a pipeline's parts say of themselves, and whether the method understands it.

The class of a pipeline promises little: Playground v2.5 is a ``StableDiffusionXLPipeline`` with another noise schedule,
an LCM a ``StableDiffusionPipeline`` whose UNet has one input more. Their predictions would be taken for something else
without any error. So the configurations are read before any weight is: on a machine without a GPU, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from spare_core.errors import ModelError


class _Rule(NamedTuple):
    """A field of a configuration: its value must be understood; ``absent`` is what diffusers takes where it lacks."""

    field: str
    absent: Any
    understood: Callable[[Any], bool]
    allowed: str
    why: str


def _one_of(*values: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in values), " or ".join(values)


_NO_EXTRA_INPUT: Final = "the UNet reads an input that only its own pipeline gives it"
_UNET: Final = (
    _Rule("time_cond_proj_dim", None, lambda value: value is None, "null",
          "this is a latent consistency model, which reads the guidance scale; erase from the model it was distilled "
          "from"),
    *(_Rule(field, None, lambda value: value is None, "null", _NO_EXTRA_INPUT)
      for field in ("encoder_hid_dim_type", "class_embed_type", "num_class_embeds")),
    _Rule("sample_size", None, lambda value: type(value) is int and value > 0, "the side of the latents, a number",
          "pictures are square; write the side into the file, e.g. 64 for pictures of 512 pixels"),
)  # fmt: skip
_SCHEDULER: Final = (
    _Rule("beta_schedule", None, *_one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
          "its noise is not that of DDPM: EDM's and flow matching's are not understood for UNets"),
    _Rule("prediction_type", "epsilon", *_one_of("epsilon", "v_prediction"), "other predictions are not understood"),
    _Rule("use_flow_sigmas", False, lambda value: not value, "false", "flow matching is not understood for UNets"),
)  # fmt: skip
_VAE: Final = tuple(
    _Rule(field, None, lambda value: value is None, "null", "latents that are normalised so are not understood")
    for field in ("latents_mean", "latents_std")
)
_ADDED: Final = {"StableDiffusionPipeline": None, "StableDiffusionXLPipeline": "text_time"}


def check_promises(path: Path, pipeline_class: str) -> None:
    """Refuse a pipeline directory whose parts say something that the method does not understand.

    Raises:
        ModelError: naming every such field, its file, and what is understood.
    """
    problems = list(_problems(path, pipeline_class))
    if problems:
        raise ModelError(f"{path} cannot be used: {'; '.join(problems)}")


def _problems(path: Path, pipeline_class: str) -> Iterator[str]:
    unet, vae = path / "unet" / "config.json", path / "vae" / "config.json"
    scheduler = path / "scheduler" / "scheduler_config.json"
    facts = {file: _read(file) for file in (unet, vae, scheduler)}
    added = _ADDED[pipeline_class]
    latents = facts[vae].get("latent_channels", 4)
    own = (
        _Rule("addition_embed_type", None, lambda value: value == added, json.dumps(added),
              f"that is not the UNet of a {pipeline_class}"),
        _Rule("in_channels", 4, lambda value: value == latents, str(latents),
              "the latents have that many channels; an inpainting model reads more than the noisy picture"),
    )  # fmt: skip
    for file, rules in ((unet, (*_UNET, *own)), (scheduler, _SCHEDULER), (vae, _VAE)):
        for rule in rules:
            value = facts[file].get(rule.field, rule.absent)
            if not rule.understood(value):
                yield (
                    f"{file.parent.name}/{file.name}: {rule.field} is {json.dumps(value)}, understood: {rule.allowed}: "
                    f"{rule.why}"
                )
    if facts[scheduler].get("rescale_betas_zero_snr") and facts[scheduler].get("prediction_type") != "v_prediction":
        yield (
            f"scheduler/{scheduler.name}: rescale_betas_zero_snr is true, but prediction_type is no v_prediction: "
            "where nothing of the picture is left, the noise says nothing about it"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); is the download complete?") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no configuration; is the download complete?")
    return found
