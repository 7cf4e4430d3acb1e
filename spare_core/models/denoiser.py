"""One small interface over every supported diffusion model: SD 1.x, SD 2.x (epsilon and v-prediction) and SDXL.

Nothing outside this file knows that a denoiser is a UNet, what it predicts, or which conditions SDXL adds. "Prediction"
is whatever the model was trained to predict; with v-prediction, differences are of v.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from spare_core.errors import ConceptError, ModelError, TrainingError
from spare_core.method.settings import Device, Precision
from spare_core.models.conditioning import Conditioning
from spare_core.models.files import ModelFiles, find_model
from spare_core.models.loading import load_pipeline, without_collection

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DECODE_BATCH = 16
_PLAIN_ATTENTION_SIDE: Final = 32
"""Largest side of latents whose attention is computed plainly on a CPU."""
FP16_LOSS_SCALE: Final = 2.0**16
"""What a loss is multiplied with under float16, to keep gradients above underflow; fixed, so that runs repeat."""


class Denoiser(Protocol):
    """What the method needs of a model. Latents are ``(B, C, H, W)``, timesteps integers ``(B,)``."""

    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    num_timesteps: int
    lora_prefix: str
    """Name of the component in LoRA files: ``unet``."""

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures the model was made for."""

    @property
    def weights(self) -> nn.Module:
        """The module whose weights an adapter changes; frozen."""

    def target_layers(self) -> dict[str, nn.Linear]:
        """The layers that an adapter may change, by name within :attr:`weights`."""

    def text_layers(self) -> dict[str, nn.Linear]:
        """Those of the target layers whose inputs are ``prompt_embeds``."""

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt without padding, in the order of ``prompt_embeds``."""

    def encode_prompts(self, prompts: Sequence[str], resolution: int = 0) -> Conditioning:
        """Prompts as the model's sampler would condition on them; "" is what guidance is measured against."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Scaled latents of RGB ``pixels``, ``(B, 3, H, W)`` in [-1, 1]."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """RGB ``(B, 3, H, W)`` in [0, 1] of scaled latents."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t."""

    def training_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model was trained to predict at x_t: the noise, or the velocity."""

    def noise_in(self, noisy: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that makes x_t of ``latents``: the inverse of :meth:`add_noise`."""

    def denoise(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, following: Tensor) -> Tensor:
        """One step of deterministic DDIM, x at the timesteps ``following``, each row's own; -1: the picture."""

    def latent_shape(self, resolution: int = 0) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a picture."""

    def batch_rows(self, latent_side: int) -> int:
        """Predictions made at once where nothing is trained, on latents of this height and width."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The model's prediction at x_t, float32."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
                 resolution: int = 0, batch_size: int = 0) -> Tensor:  # fmt: skip
        """Scaled latents sampled with DDIM, one seed a picture, each picture independent of its batch."""


def choose_device(device: Device) -> torch.device:
    """The device asked for, or the best one that is here.

    Raises:
        ModelError: if the device asked for is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in available.items() if here))
    if not available[device]:
        here = ", ".join(name for name, there in available.items() if there)
        raise ModelError(f"device {device!r} is not available on this machine; available: {here}")
    return torch.device(device)


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The precision asked for; "auto" is bfloat16 where the device computes in it, else float32."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_denoiser(
    source: str, device: Device = "auto", precision: Precision = "auto", low_memory: bool = False
) -> UNetDenoiser:
    """Load a model for erasing, frozen.

    Raises:
        ModelError: see :func:`spare_core.models.files.find_model`; also if a text encoder's weights did not load.
    """
    files = find_model(source)
    chosen = choose_device(device)
    return UNetDenoiser(files, chosen, choose_dtype(precision, chosen), low_memory)


class UNetDenoiser:
    """Stable Diffusion 1.x, 2.x and XL through their diffusers pipelines."""

    lora_prefix = "unet"

    def __init__(self, files: ModelFiles, device: torch.device, dtype: torch.dtype, low_memory: bool) -> None:
        self.files, self.device, self.dtype = files, device, dtype
        # Frozen weights may rest in half precision on an accelerator; on a CPU autocast converts them as they are used.
        with without_collection():
            from diffusers import DDIMScheduler

            self.pipeline = load_pipeline(files, torch.float32 if device.type == "cpu" else dtype).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config, clip_sample=False)
        self.pipeline.scheduler = self.scheduler
        self.num_timesteps = self.scheduler.config.num_train_timesteps
        self._is_xl = files.pipeline_class == "StableDiffusionXLPipeline"
        # Batches go through the VAE one picture at a time where they are large (diffusers' slicing).
        if self.resolution > 256:
            self.pipeline.vae.enable_slicing()
        if dtype is torch.float16 and self._is_xl:
            self.pipeline.vae.to(torch.float32)  # SDXL's overflows in float16
        for component in (*files.components, "vae"):
            getattr(self.pipeline, component).requires_grad_(False).eval()
        # The layout that convolutions compute in, on CPUs and on tensor cores alike.
        self.weights.to(memory_format=torch.channels_last)
        if low_memory:
            self.weights.enable_gradient_checkpointing()
        elif device.type == "cpu" and self.weights.config.sample_size <= _PLAIN_ATTENTION_SIDE:
            # The fused attention's backward pass takes half of a training step on a CPU
            # (benchmarks/attention_backward.py); plain attention keeps its whole matrix, so only where that is small.
            from diffusers.models.attention_processor import AttnProcessor

            self.weights.set_attn_processor(AttnProcessor())

    @property
    def weights(self) -> Any:
        """The UNet."""
        return self.pipeline.unet

    def target_layers(self) -> dict[str, nn.Linear]:
        """Query, key, value and output projections of every attention in the UNet, by module name."""
        ends = ("to_q", "to_k", "to_v", "to_out.0")
        return {
            name: module
            for name, module in self.weights.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(ends) and ".attn" in name
        }

    def text_layers(self) -> dict[str, nn.Linear]:
        """Key and value projections of every cross-attention."""
        ends = (".attn2.to_k", ".attn2.to_v")
        return {name: layer for name, layer in self.target_layers().items() if name.endswith(ends)}

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """See :class:`Denoiser`; both of SDXL's tokenizers split alike."""
        return [list(ids) for ids in self.pipeline.tokenizer(list(prompts), truncation=False).input_ids]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Forward passes in :attr:`dtype`."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the tokenizer would cut.

        Raises:
            ConceptError: naming the first such prompt, its length and the limit.
        """
        limit = self.pipeline.tokenizer.model_max_length
        for prompt, ids in zip(prompts, self.token_ids(prompts), strict=True):
            if len(ids) > limit:
                raise ConceptError(
                    f"prompt {prompt[:60]!r}… is {len(ids)} tokens long; the model reads at most {limit}: shorten the "
                    "concept, its context or the template"
                )

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], resolution: int = 0) -> Conditioning:
        """See :class:`Denoiser`; each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        encoded = Conditioning.cat(
            [self._encode(distinct[i : i + 64], resolution) for i in range(0, len(distinct), 64)]
        )
        place = {prompt: row for row, prompt in enumerate(distinct)}
        return encoded[[place[prompt] for prompt in prompts]]

    def _encode(self, prompts: list[str], resolution: int) -> Conditioning:
        if not self._is_xl:
            embeds, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)
            return Conditioning(embeds)
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            spoken = torch.tensor([bool(prompt) for prompt in prompts], device=embeds.device)
            embeds, pooled = embeds * spoken[:, None, None], pooled * spoken[:, None]
        side = resolution or self.resolution
        time_ids = embeds.new_tensor([[side, side, 0, 0, side, side]]).expand(len(prompts), -1)
        return Conditioning(embeds, {"text_embeds": pooled, "time_ids": time_ids})

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return int(self.weights.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        vae = self.pipeline.vae
        parts = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mean for part in pixels.split(_DECODE_BATCH)]
        return torch.cat(parts).float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        vae = self.pipeline.vae
        with self.autocast() if not self._is_xl else contextlib.nullcontext():
            parts = [
                vae.decode(part.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.float()
                for part in latents.split(_DECODE_BATCH)
            ]
        pixels = torch.cat(parts)
        if not torch.isfinite(pixels).all():
            raise TrainingError(f"decoding gave pixels that are not finite ({vae.dtype}); try --dtype float32")
        return (pixels / 2 + 0.5).clamp(0, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def training_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        if self.scheduler.config.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return noise

    def noise_in(self, noisy: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        signal = self._signal(timesteps)
        return (noisy - signal.sqrt() * latents) / (1 - signal).sqrt()

    def denoise(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, following: Tensor) -> Tensor:
        """See :class:`Denoiser`; equation 12 of DDIM (arXiv 2010.02502) without noise. diffusers' scheduler takes the
        same step, but at one timestep for a whole batch."""
        now, then = self._signal(timesteps), self._signal(following)
        if self.scheduler.config.prediction_type == "v_prediction":
            clean = now.sqrt() * noisy - (1 - now).sqrt() * prediction
            noise = now.sqrt() * prediction + (1 - now).sqrt() * noisy
        else:
            noise = prediction
            clean = (noisy - (1 - now).sqrt() * noise) / now.sqrt()
        return then.sqrt() * clean + (1 - then).sqrt() * noise

    def _signal(self, timesteps: Tensor) -> Tensor:
        """Cumulative product of alphas, ``(B, 1, 1, 1)``; before timestep 0 what the scheduler ends with."""
        products = self.scheduler.alphas_cumprod
        signal = torch.where(timesteps >= 0, products[timesteps.clamp(min=0)], self.scheduler.final_alpha_cumprod)
        return signal[:, None, None, None]

    def latent_shape(self, resolution: int = 0) -> tuple[int, int, int]:
        """See :class:`Denoiser`."""
        side = max(1, (resolution or self.resolution) // int(self.pipeline.vae_scale_factor))
        return int(self.weights.config.in_channels), side, side

    def batch_rows(self, latent_side: int) -> int:
        """See :class:`Denoiser`: two a picture, as guidance takes them, for 16 pictures of small latents, 4 of
        Stable Diffusion's 64 x 64, 1 of SDXL's."""
        return 2 * max(1, min(16, 64 * 16**2 // latent_side**2))

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Denoiser`."""
        added = {"added_cond_kwargs": conditioning.added} if conditioning.added else {}
        dtype = self.weights.dtype
        with self.autocast():
            output = self.weights(noisy.to(dtype), timesteps, conditioning.prompt_embeds.to(dtype), **added).sample
        return output.float()

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
                 resolution: int = 0, batch_size: int = 0) -> Tensor:  # fmt: skip
        """See :class:`Denoiser`."""
        side = resolution or self.resolution
        batch_size = batch_size or self.batch_rows(self.latent_shape(side)[-1]) // 2
        conditioning = self.encode_prompts(prompts, side)
        null = self.encode_prompts([""], side)
        latents = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            count = len(prompts[rows])
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[rows]]
            pooled = {}
            if self._is_xl:
                pooled["pooled_prompt_embeds"] = conditioning.added["text_embeds"][rows]
                pooled["negative_pooled_prompt_embeds"] = null.added["text_embeds"].expand(count, -1)
            with self.autocast():
                output = self.pipeline(
                    prompt_embeds=conditioning.prompt_embeds[rows],
                    negative_prompt_embeds=null.prompt_embeds.expand(count, -1, -1),
                    **pooled,
                    generator=generators,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    height=side,
                    width=side,
                    output_type="latent",
                )
            latents.append(output.images.float())
        result = torch.cat(latents)
        if not torch.isfinite(result).all():
            raise TrainingError(
                f"sampling {len(prompts)} pictures ({steps} steps, guidance {guidance}, {self.dtype}) gave values that "
                "are not finite; try --dtype float32"
            )
        return result

    def settings(self) -> dict[str, Any]:
        """What a report says of the model."""
        return {
            "source": self.files.source,
            "pipeline": self.files.pipeline_class,
            "prediction_type": self.scheduler.config.prediction_type,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            # The block structure that other tools' LoRA key names are made from.
            "unet": {
                name: self.weights.config[name]
                for name in ("layers_per_block", "down_block_types", "up_block_types", "transformer_layers_per_block")
            },
        }


__all__ = ["Denoiser", "UNetDenoiser", "choose_device", "choose_dtype", "load_denoiser"]
