"""Prompts longer than a text encoder reads, as A1111 and ComfyUI take them: in windows, one after the other.

Each window is a prompt of its own, with begin and end; cross-attention then reads the tokens of all of them. A window
ends between two words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spare_core.errors import ConceptError
from spare_core.models.conditioning import Conditioning
from spare_core.models.unet import UNetDenoiser


def split_into_windows(denoiser: UNetDenoiser, prompt: str) -> list[str]:
    """The parts of ``prompt`` that the text encoder reads at once; of a short one itself.

    Raises:
        ConceptError: if a single word is too long for one.
    """
    limit = denoiser.pipeline.tokenizer.model_max_length
    if len(denoiser.token_ids([prompt])[0]) <= limit:
        return [prompt]
    words = prompt.split()
    lengths = [len(ids) - 2 for ids in denoiser.token_ids(words)]  # without begin and end
    windows: list[list[str]] = [[]]
    filled = 2
    for word, length in zip(words, lengths, strict=True):
        if length + 2 > limit:
            raise ConceptError(
                f"the word {word[:40]!r}… of the prompt {prompt[:40]!r}… is {length} tokens long; the model reads at "
                f"most {limit} at once: write it in several words"
            )
        if filled + length > limit:
            windows.append([])
            filled = 2
        windows[-1].append(word)
        filled += length
    return [" ".join(window) for window in windows]


@torch.no_grad()
def encode_windows(denoiser: UNetDenoiser, prompts: Sequence[Sequence[str]]) -> Conditioning:
    """Prompts of some windows each as one conditioning, those of fewer filled up with empty ones; of SDXL's pooled text
    that of the first window."""
    count = max(len(windows) for windows in prompts)
    filled = [[*windows, *[""] * (count - len(windows))] for windows in prompts]
    encoded = [denoiser.encode_prompts([windows[i] for windows in filled]) for i in range(count)]
    return Conditioning(torch.cat([one.prompt_embeds for one in encoded], dim=1), encoded[0].added)
