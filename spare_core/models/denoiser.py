"""The interface that the method sees of a model, whatever its kind.

"Prediction" is whatever the model was trained to predict; with v-prediction, differences are of v.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from spare_core.models.conditioning import Conditioning
from spare_core.models.files import ModelFiles

FP16_LOSS_SCALE: Final = 2.0**16
"""Loss scale for float16, against underflow of gradients; fixed, so that runs are repeatable."""


class TextAttention(NamedTuple):
    """One cross-attention: the names of its text layers of keys and of values, its layer of queries, and how it makes
    softmax(scale * q' k) of each of its ``heads``."""

    key: str
    value: str
    query: nn.Linear
    heads: int
    scale: float


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
        """The target layers whose inputs are ``prompt_embeds``."""

    def text_attentions(self) -> list[TextAttention]:
        """What its text layers work in."""

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt without padding, in the order of ``prompt_embeds``."""

    def words(self) -> list[str]:
        """The words that the tokenizer holds whole, those of most texts first."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse a prompt that the text encoder would cut.

        Raises:
            ConceptError: naming it.
        """

    def word_vectors(self, texts: Sequence[str]) -> Tensor:
        """What the tokenizer's table holds of each text, ``(N, D)``: the mean over its tokens, no text encoder run.
        Near ones mean something alike."""

    def encode_prompts(self, prompts: Sequence[str], resolution: int = 0) -> Conditioning:
        """Prompts as the model's sampler would condition on them; "" is what guidance is measured against."""

    def input_embeddings(self, text: str) -> Tensor:
        """The tokens of ``text`` as the text encoders read them, before they know of each other, ``(tokens, D)``; of
        several encoders side by side."""

    def encode_as(
        self, prompts: Sequence[str], words: Sequence[str], vectors: Tensor, resolution: int = 0
    ) -> Conditioning:
        """Prompts encoded with ``vectors`` ``(V, D)``, as :meth:`input_embeddings` has them, in place of the tokens of
        V ``words``, each of one token; with their gradient. ``(N, V, D)``: each of N prompts has its own."""

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
        """Predictions made at once where gradients may be kept of them, on latents of this height and width."""

    def rows_at_once(self, latent_side: int) -> int:
        """Predictions made at once where none are."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The model's prediction at x_t, float32."""

    def precise(self, tf32: bool = False) -> AbstractContextManager[None]:
        """Inside, predictions are computed in float32 throughout, whatever :attr:`dtype` is; with ``tf32`` products on
        CUDA may have that precision, for five times the speed. What is measured are squared differences of predictions,
        of which the rounding of half precision would be most."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
                 resolution: int = 0, batch_size: int = 0) -> Tensor:  # fmt: skip
        """Scaled latents sampled with DDIM, one seed a picture, each picture independent of its batch."""

    def sample(self, conditioning: Conditioning, seeds: Sequence[int], steps: int, guidance: float,
               resolution: int = 0, batch_size: int = 0) -> Tensor:  # fmt: skip
        """The same for prompts that are encoded already, or for what else lies in their space."""
