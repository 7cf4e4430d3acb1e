"""A pipeline whose parts promise what the method does not understand is refused on a CPU, by the field's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from spare_core.errors import ModelError
from spare_core.models.files import find_model
from spare_core.models.loading import load_denoiser
from spare_core.models.pipelines import check_same_schedule
from spare_core.models.unet import UNetDenoiser

UNDERSTOOD = [
    "DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "KDPM2DiscreteScheduler", "DEISMultistepScheduler",
    "LCMScheduler",
]  # fmt: skip


@pytest.fixture(params=["sd1_dir", "sdxl_dir"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pipeline directory to be changed."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model"))


def change(model: Path, file: str, **fields: Any) -> None:
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


UNET, SCHEDULER, VAE = "unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        (UNET, {"time_cond_proj_dim": 256}),
        (UNET, {"encoder_hid_dim_type": "text_proj"}),
        (UNET, {"class_embed_type": "timestep"}),
        (UNET, {"num_class_embeds": 1000}),
        (UNET, {"in_channels": 9}),
        (UNET, {"addition_embed_type": "image"}),
        (UNET, {"sample_size": [64, 64]}),
        (UNET, {"sample_size": None}),
        (SCHEDULER, {"prediction_type": "sample"}),
        (SCHEDULER, {"prediction_type": "flow_prediction"}),
        (SCHEDULER, {"beta_schedule": None}),
        (SCHEDULER, {"use_flow_sigmas": True}),
        (SCHEDULER, {"rescale_betas_zero_snr": True}),
        (VAE, {"latents_mean": [0.0, 0.0, 0.0, 0.0]}),
        (VAE, {"latents_std": [1.0, 1.0, 1.0, 1.0]}),
    ],
    ids=str,
)
def test_a_field_that_is_not_understood_is_named(file: str, fields: dict[str, Any], model: Path) -> None:
    change(model, file, **fields)
    with pytest.raises(ModelError) as caught:
        find_model(str(model))
    (name, value), message = next(iter(fields.items())), str(caught.value)
    assert f"{file}: {name} is {json.dumps(value)}" in message


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler",
                                  "FlowMatchEulerDiscreteScheduler"])  # fmt: skip
def test_schedulers_that_are_not_ddpms_are_refused_as_they_are_saved(name: str, model: Path) -> None:
    shutil.rmtree(model / "scheduler")
    getattr(diffusers, name)().save_pretrained(model / "scheduler")
    with pytest.raises(ModelError, match=r"scheduler_config\.json: beta_schedule is null"):
        find_model(str(model))


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_schedulers_of_ddpms_kind_are_understood(name: str, sd1_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(sd1_dir, tmp_path / "model"))
    config = json.loads((model / SCHEDULER).read_text())
    shutil.rmtree(model / "scheduler")
    getattr(diffusers, name).from_config(config).save_pretrained(model / "scheduler")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", name]}))
    denoiser = load_denoiser(str(model), "cpu", "float32")
    own = getattr(diffusers, name).from_pretrained(model / "scheduler")
    torch.testing.assert_close(denoiser.scheduler.alphas_cumprod, own.alphas_cumprod)


def test_zero_terminal_signal_goes_with_velocities(sd2_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(sd2_dir, tmp_path / "model"))
    change(model, SCHEDULER, rescale_betas_zero_snr=True)
    denoiser = load_denoiser(str(model), "cpu", "float32")
    assert denoiser.scheduler.alphas_cumprod[-1] == 0


def test_a_scheduler_that_adds_other_noise_than_it_says_is_refused(denoiser: UNetDenoiser) -> None:
    """The last word is what it computes: somebody's own class may do what it likes."""
    own = diffusers.DDIMScheduler.from_config(denoiser.scheduler.config)
    check_same_schedule(denoiser.files, own, denoiser.scheduler)
    own.alphas_cumprod = own.alphas_cumprod**2
    for other in (own, diffusers.EDMEulerScheduler()):
        with pytest.raises(ModelError, match=f"{type(other).__name__} adds noise otherwise than DDIM"):
            check_same_schedule(denoiser.files, other, denoiser.scheduler)


def test_every_problem_is_named_at_once(model: Path) -> None:
    change(model, UNET, time_cond_proj_dim=256)
    change(model, SCHEDULER, prediction_type="sample")
    with pytest.raises(ModelError, match=r"time_cond_proj_dim .*; scheduler/.*prediction_type"):
        find_model(str(model))


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff"])
def test_a_configuration_that_cannot_be_read(content: bytes | None, model: Path) -> None:
    file = model / SCHEDULER
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ModelError, match=r"scheduler_config\.json .*is the download complete"):
        find_model(str(model))
