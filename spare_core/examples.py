"""Forget and retain examples: latents and prompt embeddings, made once, so that no VAE and no text encoder runs later.

By default the model itself draws the latents, from text alone; a folder of images may take the place of the forget
side's own pictures.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from spare_core.atomic import read_tensors, write_tensors
from spare_core.concept import Erasure
from spare_core.denoiser import Conditioning, Denoiser
from spare_core.errors import ImagesError, StageError
from spare_core.settings import EraseSettings

NULL: Final = ""
_NULL_SHARE: Final = 0.125
"""Share of the retain side that holds the empty prompt: guidance needs it as it was."""
_HELDOUT_CONTEXTS: Final = 5
"""Every fifth context is never trained on, only measured."""
_SIDES: Final = ("forget", "retain", "forget_heldout", "retain_heldout")
_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Side(NamedTuple):
    """Latents ``(N, C, H, W)`` and, for each, rows ``(N,)`` of the prompt table.

    ``student``: the prompt the adapter is trained under; ``teacher``: the prompt whose frozen prediction it is pulled
    to (the same row on the retain side); ``concept`` and ``surrogate``: the pair whose gap is the unit of drift.
    """

    latents: Tensor
    student: Tensor
    teacher: Tensor
    concept: Tensor
    surrogate: Tensor

    def take(self, index: Tensor) -> Side:
        """The chosen examples."""
        return Side(*(part[index] for part in self))


@dataclass(frozen=True)
class Examples:
    """Both sides, to train on and held out. ``names[row]`` is the concept that prompt ``row`` of the table names."""

    prompts: tuple[str, ...]
    names: tuple[str, ...]
    table: Conditioning
    null_row: int
    forget: Side
    retain: Side
    forget_heldout: Side
    retain_heldout: Side

    def save(self, path: Path) -> None:
        """Write a safetensors file: the prompt table, the four sides, and the texts as metadata."""
        tensors = {f"table/added/{key}": value for key, value in self.table.added.items()}
        tensors["table/prompt_embeds"] = self.table.prompt_embeds
        for side in _SIDES:
            tensors |= {f"{side}/{key}": value for key, value in getattr(self, side)._asdict().items()}
        texts = {"prompts": self.prompts, "names": self.names, "null_row": self.null_row}
        write_tensors(path, tensors, {"texts": json.dumps(texts)})

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Examples:
        """What :meth:`save` wrote, its prompt table on ``device``.

        Raises:
            StageError: if the file is missing or damaged.
        """
        try:
            tensors, metadata = read_tensors(path)
            texts = json.loads(metadata["texts"])
            added = {key.removeprefix("table/added/"): value for key, value in tensors.items() if "/added/" in key}
            sides = {side: Side(*(tensors[f"{side}/{key}"] for key in Side._fields)) for side in _SIDES}
            table = Conditioning(tensors["table/prompt_embeds"], added).to(device)
            return cls(tuple(texts["prompts"]), tuple(texts["names"]), table, texts["null_row"], **sides)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StageError(f"{path} does not hold the examples of a prepare stage: {error!r}; run it again") from None


class _Prompt(NamedTuple):
    name: str
    context: str


def generate_examples(
    denoiser: Denoiser, erasure: Erasure, settings: EraseSettings, images: Path | None = None
) -> Examples:
    """Let the model draw both sides (fixed seeds); with ``images``, its forget half comes from that folder."""
    pictures = load_images(images, settings.resolution or denoiser.resolution) if images else None
    # Room for every picture: they take the place of the half that is drawn under the concept.
    forget_count = max(settings.examples, 0 if pictures is None else 2 * len(pictures))
    plan = _Plan(erasure, settings)
    sides: dict[str, tuple[list[_Prompt], list[_Prompt]]] = {}
    for name, contexts, forgets, retains in (
        ("train", plan.train_contexts, forget_count, settings.retain_examples),
        ("heldout", plan.heldout_contexts, settings.heldout, settings.heldout),
    ):
        sides[name] = (plan.forget(contexts, forgets), plan.retain(contexts, retains, name))
    drawn = [prompt for pair in sides.values() for side in pair for prompt in side]
    seeds = [settings.seed * 1_000_003 + i for i in range(len(drawn))]
    texts = [plan.text(prompt) for prompt in drawn]
    latents = denoiser.generate(texts, seeds, settings.example_steps, settings.guidance, settings.resolution).cpu()
    prompts = plan.table(drawn)
    rows = {prompt: row for row, prompt in enumerate(prompts)}
    start, built = 0, []
    for forget, retain in sides.values():
        for side, is_forget in ((forget, True), (retain, False)):
            built.append(plan.side(side, latents[start : start + len(side)], rows, is_forget))
            start += len(side)
    forget_train, retain_train, forget_heldout, retain_heldout = built
    if pictures is not None:
        forget_train = _with_pictures(forget_train, denoiser.encode_images(pictures).cpu())
    table_texts = [plan.text(prompt) for prompt in prompts]
    return Examples(
        prompts=tuple(table_texts),
        names=tuple(prompt.name for prompt in prompts),
        table=denoiser.encode_prompts(table_texts, settings.resolution),
        null_row=rows[_Prompt(NULL, "")],
        forget=forget_train,
        retain=_share_with_null(retain_train, forget_train, rows[_Prompt(NULL, "")]),
        forget_heldout=forget_heldout,
        retain_heldout=retain_heldout,
    )


def all_prompts(erasure: Erasure) -> list[str]:
    """Every prompt an erasure may use, to be checked before any work."""
    return [NULL, *(p for name in (erasure.concept, *erasure.retained) for p in erasure.prompts(name))]


class _Plan:
    """Which prompts each side is drawn from."""

    def __init__(self, erasure: Erasure, settings: EraseSettings) -> None:
        self.erasure = erasure
        self.random = random.Random(settings.seed)
        contexts = list(erasure.contexts or ("",))
        random.Random(0).shuffle(contexts)  # the same split under every seed: what is held out stays held out
        self.heldout_contexts = contexts[::_HELDOUT_CONTEXTS] if len(contexts) >= _HELDOUT_CONTEXTS else contexts
        self.train_contexts = [c for c in contexts if c not in self.heldout_contexts] or contexts

    def text(self, prompt: _Prompt) -> str:
        return self.erasure.prompt(*prompt) if prompt.name else NULL

    def forget(self, contexts: Sequence[str], count: int) -> list[_Prompt]:
        """Half drawn under the concept, half under the surrogate: sampling an erased model starts on the first kind of
        latents and ends on the second."""
        names = (self.erasure.concept, self.erasure.surrogate)
        return [_Prompt(names[i % 2], contexts[(i // 2) % len(contexts)]) for i in range(count)]

    def retain(self, contexts: Sequence[str], count: int, split: str) -> list[_Prompt]:
        """The retained concepts in turn, each at least once, in shuffled contexts; when measuring, the empty prompt."""
        null = max(1, round(_NULL_SHARE * count)) if split == "heldout" else 0
        names = self.erasure.retained
        decks = {name: self.random.sample(list(contexts), len(contexts)) for name in names}
        named = []
        for i in range(max(count - null, len(names))):
            turn, place = divmod(i, len(names))
            named.append(_Prompt(names[place], decks[names[place]][turn % len(contexts)]))
        return named + [_Prompt(NULL, "")] * null

    def table(self, drawn: Sequence[_Prompt]) -> list[_Prompt]:
        pairs = [
            _Prompt(name, prompt.context or self.train_contexts[0])
            for prompt in drawn
            for name in (self.erasure.concept, self.erasure.surrogate)
        ]
        return list(dict.fromkeys([_Prompt(NULL, ""), *drawn, *pairs]))

    def side(self, prompts: Sequence[_Prompt], latents: Tensor, rows: dict[_Prompt, int], is_forget: bool) -> Side:
        contexts = [prompt.context or self.train_contexts[0] for prompt in prompts]
        concept = torch.tensor([rows[_Prompt(self.erasure.concept, context)] for context in contexts])
        surrogate = torch.tensor([rows[_Prompt(self.erasure.surrogate, context)] for context in contexts])
        if is_forget:
            return Side(latents, concept, surrogate, concept, surrogate)
        own = torch.tensor([rows[prompt] for prompt in prompts])
        return Side(latents, own, own, concept, surrogate)


def _share_with_null(retain: Side, forget: Side, null_row: int) -> Side:
    """Add the empty prompt on latents of both sides: guidance evaluates it wherever sampling passes."""
    count = max(2, round(_NULL_SHARE * len(retain.latents)))
    every = max(1, (len(retain.latents) + len(forget.latents)) // count)
    joined = Side(*(torch.cat(pair) for pair in zip(retain, forget, strict=True)))
    null = joined.take(torch.arange(0, len(joined.latents), every))
    row = torch.full_like(null.student, null_row)
    null = null._replace(student=row, teacher=row)
    return Side(*(torch.cat(pair) for pair in zip(retain, null, strict=True)))


def _with_pictures(forget: Side, latents: Tensor) -> Side:
    """The half of the forget side that was drawn under the concept, replaced by real pictures, repeated as needed."""
    own = torch.arange(0, len(forget.latents), 2)
    replaced = forget.latents.clone()
    replaced[own] = latents[torch.arange(len(own)) % len(latents)]
    return forget._replace(latents=replaced)


def load_images(folder: Path, side: int) -> Tensor:
    """Every image of a folder, centre-cropped to a square: RGB ``(N, 3, side, side)`` in [-1, 1], by file name.

    Raises:
        ImagesError: if the folder is missing or empty, or lists every file that cannot be decoded.
    """
    if not folder.is_dir():
        raise ImagesError(f"{folder} is not a folder; give a folder of {', '.join(_SUFFIXES)} files")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise ImagesError(f"{folder} holds no images; looked for {', '.join(_SUFFIXES)}")
    pixels, bad = [], []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels.append(_square(_upright(image), side))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            bad.append(f"{file.name}: {error}")
    if bad:
        raise ImagesError(f"{len(bad)} of {len(files)} images in {folder} cannot be read: {'; '.join(bad[:10])}")
    return torch.stack(pixels)


def _upright(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: turned as its EXIF says, transparency on white."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _square(image: Image.Image, side: int) -> Tensor:
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    cropped = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(cropped, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)
