"""What a pipeline's parts say of themselves, and whether the method understands it.

The class of a pipeline promises little: Playground v2.5 is a ``StableDiffusionXLPipeline`` with another noise schedule,
an LCM a ``StableDiffusionPipeline`` whose UNet has one input more. Their predictions would be taken for something else
without any error. So the configurations are read before any weight is: on a machine without a GPU, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


_MOST_SIDE: Final = 1024
_MOST_STEPS: Final = 100_000
_PLAIN: Final = _Rule("quantization_config", None, lambda value: value is None, "null",
                      "quantized weights cannot be erased from; give those they were made of")  # fmt: skip
_NO_EXTRA_INPUT: Final = "the UNet reads an input that only its own pipeline gives it"
_UNET: Final = (
    _Rule("time_cond_proj_dim", None, lambda value: value is None, "null",
          "this is a latent consistency model, which reads the guidance scale; erase from the model it was distilled "
          "from"),
    *(_Rule(field, None, lambda value: value is None, "null", _NO_EXTRA_INPUT)
      for field in ("encoder_hid_dim_type", "class_embed_type", "num_class_embeds")),
    _Rule("sample_size", None, lambda value: type(value) is int and 0 < value <= _MOST_SIDE,
          f"the side of the latents, a number up to {_MOST_SIDE}",
          "pictures are square; write the side into the file, e.g. 64 for pictures of 512 pixels"),
)  # fmt: skip
_SCHEDULER: Final = (
    _Rule("beta_schedule", None, *_one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
          "its noise is not that of DDPM: EDM's and flow matching's are not understood for UNets"),
    _Rule("prediction_type", "epsilon", *_one_of("epsilon", "v_prediction"), "other predictions are not understood"),
    _Rule("use_flow_sigmas", False, lambda value: not value, "false", "flow matching is not understood for UNets"),
    _Rule("num_train_timesteps", 1000, lambda value: type(value) is int and 1 < value <= _MOST_STEPS,
          f"a number from 2 to {_MOST_STEPS}", "it is how many steps of noise the model knows"),
    *(_Rule(field, absent, lambda value: type(value) in (int, float) and 0 < value < 1, "a number between 0 and 1",
            "it is the noise of a step") for field, absent in (("beta_start", 1e-4), ("beta_end", 0.02))),
)  # fmt: skip
_VAE: Final = (
    *(_Rule(field, None, lambda value: not value, "null", "latents that are normalised so are not understood")
      for field in ("latents_mean", "latents_std", "shift_factor")),
    _Rule("scaling_factor", 0.18215, lambda value: type(value) in (int, float) and value > 0, "a number above 0",
          "latents are multiplied by it"),
)  # fmt: skip
_ADDED: Final = {"StableDiffusionPipeline": None, "StableDiffusionXLPipeline": "text_time"}


def rules() -> Iterator[tuple[str, str, str, str]]:
    """Every rule that holds for any model, for the documentation: file, field, what is understood, and why."""
    files = {
        "unet/config.json": (*_UNET, _PLAIN), "scheduler/scheduler_config.json": _SCHEDULER,
        "vae/config.json": (*_VAE, _PLAIN), "text_encoder/config.json": (_PLAIN,),
    }  # fmt: skip
    for file, those in files.items():
        for rule in those:
            yield file, rule.field, rule.allowed, rule.why


def check_promises(path: Path, pipeline_class: str, text_encoders: Sequence[str]) -> None:
    """Refuse a pipeline directory whose parts say something that the method does not understand.

    Raises:
        ModelError: naming every such field, its file, and what is understood.
    """
    problems = list(_problems(path, pipeline_class))
    for name in text_encoders:
        problems += _text_problems(path, name)
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
    for file, rules in ((unet, (*_UNET, _PLAIN, *own)), (scheduler, _SCHEDULER), (vae, (*_VAE, _PLAIN))):
        yield from _broken(file, facts[file], rules)
    if facts[scheduler].get("rescale_betas_zero_snr") and facts[scheduler].get("prediction_type") != "v_prediction":
        yield (
            f"scheduler/{scheduler.name}: rescale_betas_zero_snr is true, but prediction_type is no v_prediction: "
            "where nothing of the picture is left, the noise says nothing about it"
        )
    own_steps, steps = facts[scheduler].get("trained_betas"), facts[scheduler].get("num_train_timesteps", 1000)
    if own_steps is not None and (not isinstance(own_steps, list) or len(own_steps) != steps):
        yield f"scheduler/{scheduler.name}: trained_betas are not one for each of the {steps} num_train_timesteps"


def _broken(file: Path, facts: Mapping[str, Any], rules: Iterable[_Rule]) -> Iterator[str]:
    for rule in rules:
        value = facts.get(rule.field, rule.absent)
        if not rule.understood(value):
            yield (
                f"{file.parent.name}/{file.name}: {rule.field} is {json.dumps(value)}, understood: {rule.allowed}: "
                f"{rule.why}"
            )


def _text_problems(path: Path, name: str) -> Iterator[str]:
    """Of a text encoder and its tokenizer, which must cut prompts where the encoder ends; stock pipelines fail where it
    does not."""
    config, folder = path / name / "config.json", path / name.replace("text_encoder", "tokenizer")
    facts, said = _read(config), folder / "tokenizer_config.json"
    yield from _broken(config, facts, (_PLAIN,))
    whole = (folder / "tokenizer.json").is_file()
    missing = [one for one in ("vocab.json", "merges.txt") if not whole and not (folder / one).is_file()]
    if missing or not said.is_file():
        yield f"{folder.name} has no {missing[0] if missing else said.name}; is the download complete?"
        return
    most, length = facts.get("max_position_embeddings", 77), _read(said).get("model_max_length")
    if type(length) is not int or not 2 < length <= most:
        yield (
            f"{folder.name}/{said.name}: model_max_length is {json.dumps(length)}, understood: a number up to {most}, "
            f"which the {name} reads at once: write {most} into the file"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{file} cannot be read ({reason}); is the download complete?") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no configuration; is the download complete?")
    return found
