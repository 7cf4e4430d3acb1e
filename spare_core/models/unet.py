"""Stable Diffusion 1.x, 2.x (epsilon and v-prediction) and XL: denoisers that are UNets.

Nothing outside this file knows that a denoiser is a UNet, what it predicts, or which conditions SDXL adds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from spare_core.errors import ConceptError, TrainingError
from spare_core.models import room, schedules
from spare_core.models.conditioning import Conditioning
from spare_core.models.denoiser import TextAttention
from spare_core.models.files import ModelFiles
from spare_core.models.pipelines import check_same_schedule, load_pipeline, without_collection
from spare_core.models.vocabulary import whole_words

_DECODE_BATCH: Final = 16
_PLAIN_ATTENTION_SIDE: Final = 32
"""Largest side of latents whose attention is computed plainly on a CPU."""


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
        check_same_schedule(files, self.pipeline.scheduler, self.scheduler)
        self.pipeline.scheduler = self.scheduler
        self.num_timesteps = self.scheduler.config.num_train_timesteps
        # The noise schedule and what it ends at, on the CPU and here. Own copies: diffusers moves its to where somebody
        # asks from.
        schedule = (self.scheduler.alphas_cumprod, self.scheduler.final_alpha_cumprod)
        places = (torch.device("cpu"), device)
        self._alphas = {place.type: tuple(part.to(place, copy=True) for part in schedule) for place in places}
        self._is_xl = files.pipeline_class == "StableDiffusionXLPipeline"
        self._row_bytes: dict[int, float] = {}  # a prediction's, for each byte of a weight, by side of latents
        self._rows: dict[tuple[int, int], int] = {}  # predictions at once, by side of latents and bytes of a weight
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

    @property
    def _resting(self) -> torch.dtype:
        """What the weights are kept in. diffusers' own ``dtype`` walks through all of them at each prediction."""
        return next(self.weights.parameters()).dtype

    def target_layers(self) -> dict[str, nn.Linear]:
        """Query, key, value and output projections of every attention in the UNet, by module name."""
        return dict(self._target_layers)

    @functools.cached_property
    def _target_layers(self) -> dict[str, nn.Linear]:
        # Found once: every adapter that is attached asks, and SDXL has thousands of modules.
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

    def text_attentions(self) -> list[TextAttention]:
        """Every cross-attention."""
        modules = dict(self.weights.named_modules())
        names = [name.removesuffix(".to_v") for name in self.text_layers() if name.endswith(".to_v")]
        return [
            TextAttention(f"{name}.to_k", f"{name}.to_v", modules[name].to_q, modules[name].heads, modules[name].scale)
            for name in names
        ]

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """See :class:`Denoiser`; both of SDXL's tokenizers split alike."""
        return [list(ids) for ids in self.pipeline.tokenizer(list(prompts), truncation=False).input_ids]

    def words(self) -> list[str]:
        """See :class:`Denoiser`; of SDXL's first tokenizer, whose words are those of the second."""
        return self._words

    def word_vectors(self, texts: Sequence[str]) -> Tensor:
        """See :class:`Denoiser`; of SDXL's first text encoder."""
        table = self.pipeline.text_encoder.get_input_embeddings().weight.detach().float().cpu()
        tokens = self.pipeline.tokenizer(list(texts), add_special_tokens=False).input_ids
        return torch.stack([table[ids].mean(dim=0) for ids in tokens])

    @functools.cached_property
    def _words(self) -> list[str]:
        return whole_words(self.pipeline.tokenizer)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Forward passes in :attr:`dtype`. Weights that rest in it need no conversion, and autocast would widen every
        norm's input, and keep it for the backward pass."""
        if self._resting is self.dtype:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @contextlib.contextmanager
    def precise(self, tf32: bool = False) -> Iterator[None]:
        """See :class:`Denoiser`. Weights that rest in half precision are widened, which changes none of them, and
        narrowed again."""
        dtype, resting = self.dtype, self._resting
        convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        self.dtype = torch.float32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        if resting is not torch.float32:
            nn.Module.to(self.weights, torch.float32)  # diffusers' own warns of what it would do to others than UNets
        try:
            yield
        finally:
            if resting is not torch.float32:
                nn.Module.to(self.weights, resting)
            self.dtype = dtype
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products

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

    def input_embeddings(self, text: str) -> Tensor:
        """See :class:`Denoiser`: from the encoders' own tables."""
        tables = [table.weight.detach().float().cpu() for table in self._token_tables()]
        ids = self.pipeline.tokenizer(text, add_special_tokens=False).input_ids
        return torch.cat([table[ids] for table in tables], dim=1)

    def token_vectors(self) -> tuple[list[str], Tensor]:
        """Every token of the vocabulary that is no mark of the tokenizer's own, as it is written, and its input
        embedding, ``(tokens, D)``; of SDXL's two encoders side by side."""
        tokenizer = self.pipeline.tokenizer
        marks, written = {*tokenizer.all_special_ids}, tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        ids = [token for token in range(len(tokenizer)) if token not in marks]
        tables = [table.weight.detach().float().cpu() for table in self._token_tables()]
        return [written[token] for token in ids], torch.cat([table[ids] for table in tables], dim=1)

    def encode_as(
        self, prompts: Sequence[str], words: Sequence[str], vectors: Tensor, resolution: int = 0
    ) -> Conditioning:
        """See :class:`Denoiser`."""
        ids = [self.pipeline.tokenizer(word, add_special_tokens=False).input_ids for word in words]
        assert all(len(some) == 1 for some in ids), "a word of one token each"
        handles, start = [], 0
        for table in self._token_tables():
            own = vectors[..., start : start + table.embedding_dim]
            handles.append(table.register_forward_hook(_reading([some[0] for some in ids], own)))
            start += table.embedding_dim
        try:
            return self._encode(list(prompts), resolution)
        finally:
            for handle in handles:
                handle.remove()

    def _token_tables(self) -> list[nn.Embedding]:
        encoders = [self.pipeline.text_encoder, *([self.pipeline.text_encoder_2] if self._is_xl else [])]
        return [encoder.get_input_embeddings() for encoder in encoders]

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
        return schedules.noise_in(noisy, latents, self._signal(timesteps))

    def denoise(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, following: Tensor) -> Tensor:
        """See :class:`Denoiser`."""
        now, then = self._signal(timesteps), self._signal(following)
        return schedules.ddim_step(noisy, prediction, now, then, self.scheduler.config.prediction_type)

    def _signal(self, timesteps: Tensor) -> Tensor:
        return schedules.signal(timesteps, *self._alphas[timesteps.device.type])

    def latent_shape(self, resolution: int = 0) -> tuple[int, int, int]:
        """See :class:`Denoiser`."""
        side = max(1, (resolution or self.resolution) // int(self.pipeline.vae_scale_factor))
        return int(self.weights.config.in_channels), side, side

    def batch_rows(self, latent_side: int) -> int:
        """See :class:`Denoiser`: two a picture, as guidance takes them, for 16 pictures of small latents, 4 of
        Stable Diffusion's 64 x 64, 1 of SDXL's."""
        return 2 * max(1, min(16, 64 * 16**2 // latent_side**2))

    def rows_at_once(self, latent_side: int) -> int:
        """See :class:`Denoiser`: on a GPU by its memory when it is first asked. On a CPU :meth:`batch_rows`, always the
        same: its bytes are a function of seed and threads."""
        if self.device.type != "cuda":
            return self.batch_rows(latent_side)
        case = (latent_side, self._resting.itemsize)
        if case not in self._rows:
            self._rows[case] = room.rows_that_fit(room.free_bytes(self.device), self._bytes_a_row(*case))
        return self._rows[case]

    def _bytes_a_row(self, latent_side: int, width: int) -> float:
        """What a prediction takes by weights of ``width`` bytes; measured by those that there are, once."""
        if latent_side not in self._row_bytes:
            empty = self.encode_prompts([""], latent_side * int(self.pipeline.vae_scale_factor))
            channels = int(self.weights.config.in_channels)

            @torch.no_grad()
            def ask(rows: int) -> Tensor:
                noisy = torch.zeros(rows, channels, latent_side, latent_side, device=self.device)
                return self.predict(noisy, torch.zeros(rows, device=self.device).long(), empty[[0] * rows])

            self._row_bytes[latent_side] = room.bytes_a_row(ask, self.device) / self._resting.itemsize
        return self._row_bytes[latent_side] * width

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`Denoiser`."""
        added = {"added_cond_kwargs": conditioning.added} if conditioning.added else {}
        dtype = self._resting
        with self.autocast():
            output = self.weights(noisy.to(dtype), timesteps, conditioning.prompt_embeds.to(dtype), **added).sample
        return output.float()

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
                 resolution: int = 0, batch_size: int = 0) -> Tensor:  # fmt: skip
        """See :class:`Denoiser`."""
        return self.sample(self.encode_prompts(prompts, resolution), seeds, steps, guidance, resolution, batch_size)

    @torch.no_grad()
    def sample(self, conditioning: Conditioning, seeds: Sequence[int], steps: int, guidance: float,
               resolution: int = 0, batch_size: int = 0) -> Tensor:  # fmt: skip
        """See :class:`Denoiser`."""
        side = resolution or self.resolution
        batch_size = batch_size or self.batch_rows(self.latent_shape(side)[-1]) // 2
        null = self.encode_prompts([""], side)
        windows = conditioning.prompt_embeds.shape[1] // null.prompt_embeds.shape[1]
        nothing = null.prompt_embeds.repeat(1, windows, 1)
        latents = []
        for start in range(0, len(seeds), batch_size):
            rows = slice(start, start + batch_size)
            count = len(seeds[rows])
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[rows]]
            pooled = {}
            if self._is_xl:
                pooled["pooled_prompt_embeds"] = conditioning.added["text_embeds"][rows]
                pooled["negative_pooled_prompt_embeds"] = null.added["text_embeds"].expand(count, -1)
            with self.autocast():
                output = self.pipeline(
                    prompt_embeds=conditioning.prompt_embeds[rows],
                    negative_prompt_embeds=nothing.expand(count, -1, -1),
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
                f"sampling {len(seeds)} pictures ({steps} steps, guidance {guidance}, {self.dtype}) gave values that "
                "are not finite; try --dtype float32"
            )
        return result

    def describe(self) -> dict[str, Any]:
        """What a report says of the model."""
        return {
            "source": self.files.source,
            **({"revision": self.files.revision} if self.files.revision else {}),
            "pipeline": self.files.pipeline_class,
            "resolution": self.resolution,
            "prediction_type": self.scheduler.config.prediction_type,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            # The block structure that other tools' LoRA key names are made from.
            "unet": {
                name: self.weights.config[name]
                for name in ("layers_per_block", "down_block_types", "up_block_types", "transformer_layers_per_block")
            },
        }


def _reading(ids: Sequence[int], vectors: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook of a table of tokens ``(B, L)`` that gives ``vectors`` ``(V, D)`` or ``(B, V, D)`` in place of those of
    ``ids``."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for token, vector in zip(ids, vectors.unbind(-2), strict=True):
            output = torch.where((inputs[0] == token)[..., None], vector.unsqueeze(-2).to(output), output)
        return output

    return hook
