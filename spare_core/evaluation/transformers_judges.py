"""Judges from transformers directories: a pair of image classifiers, or CLIP. Only safetensors weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from spare_core.errors import ModelError
from spare_core.evaluation.judgement import Judgement, Reference, matching, recognise, sha256
from spare_core.evaluation.suite import Suite

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TEXT_BATCH: Final = 64


class ClassifierJudge:
    """Two transformers image classifiers, one a domain; features are both last hidden states, averaged over space."""

    name = "classifier"
    accuracy: Mapping[str, Any] | None = None
    reference: Reference | None = None

    def __init__(self, suite: Suite, device: torch.device, styles: Path, objects: Path) -> None:
        from transformers import AutoModelForImageClassification

        self.digest = sha256(_weights(styles) + _weights(objects))
        self._device = device
        self._heads = []
        for folder, names in ((objects, suite.objects), (styles, suite.styles)):
            model = _load(AutoModelForImageClassification, folder, device)
            labels = [model.config.id2label[row] for row in range(model.config.num_labels)]
            self._heads.append((model, _processor(folder), matching(labels, names, f"classifier {folder}")))

    @torch.no_grad()
    def judge(self, pixels: Tensor) -> Judgement:
        """See :class:`Judge`."""
        recognised, features = [], []
        for model, processor, columns in self._heads:
            output = model(_processed(processor, pixels, self._device), output_hidden_states=True)
            recognised.append(recognise(output.logits, columns))
            hidden = output.hidden_states[-1]  # (B, D, h, w) of a convolutional network, (B, T, D) of a transformer
            features.append(hidden.mean(dim=(2, 3)) if hidden.dim() == 4 else hidden.mean(dim=1))
        return Judgement(recognised[0], recognised[1], torch.cat(features, dim=1).float().cpu())


class ClipJudge:
    """Zero-shot CLIP (arXiv 2103.00020). Features are image embeddings.

    A concept's text embedding is the mean over the suite's prompts that name it, so the judge reads the very captions
    that the pictures were drawn from.
    """

    name = "clip"
    accuracy: Mapping[str, Any] | None = None
    reference: Reference | None = None

    def __init__(self, suite: Suite, device: torch.device, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.digest = sha256(_weights(folder))
        self._device = device
        self._model = _load(CLIPModel, folder, device)
        self._processor = _processor(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} has no tokenizer that can be read: {error}") from None
        prompts = [suite.prompt(obj, style) for obj in suite.objects for style in suite.styles]
        embeds = self._embed(prompts, tokenizer).unflatten(0, (len(suite.objects), len(suite.styles)))
        self._objects = F.normalize(embeds.mean(dim=1), dim=-1)
        self._styles = F.normalize(embeds.mean(dim=0), dim=-1)

    @torch.no_grad()
    def _embed(self, prompts: Sequence[str], tokenizer: Any) -> Tensor:
        """Unit text embeddings ``(P, D)``."""
        parts = []
        for start in range(0, len(prompts), _TEXT_BATCH):
            batch = list(prompts[start : start + _TEXT_BATCH])
            tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self._device)
            pooled = self._model.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output
            parts.append(F.normalize(self._model.text_projection(pooled), dim=-1))
        return torch.cat(parts)

    @torch.no_grad()
    def judge(self, pixels: Tensor) -> Judgement:
        """See :class:`Judge`."""
        pooled = self._model.vision_model(_processed(self._processor, pixels, self._device)).pooler_output
        embeds = self._model.visual_projection(pooled)
        unit, scale = F.normalize(embeds, dim=-1), self._model.logit_scale.exp()
        objects = recognise(scale * unit @ self._objects.T, range(len(self._objects)))
        styles = recognise(scale * unit @ self._styles.T, range(len(self._styles)))
        return Judgement(objects, styles, embeds.float().cpu())


def _weights(folder: Path) -> list[Path]:
    """The safetensors weights of a transformers directory."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
        hint = f"; it holds {pickles[0]}, a pickle, which is never read: convert it" if pickles else ""
        raise ModelError(f"{folder} holds no model.safetensors{hint}")
    return files


def _load(model_class: Any, folder: Path, device: torch.device) -> Any:
    """A transformers model, frozen; weights that the files lack would be random, so they are an error."""
    try:
        model, report = model_class.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"transformers cannot load {folder} as {model_class.__name__}: {error}") from None
    wrong = sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))
    if wrong:
        raise ModelError(f"{folder} lacks {len(wrong)} of the model's weights ({wrong[0]}); save or fetch it again")
    return model.eval().requires_grad_(False).to(device)


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no image processor that can be read: {error}") from None


def _processed(processor: Any, pixels: Tensor, device: torch.device) -> Tensor:
    pictures = (pixels.clamp(0, 1) * 255.0).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    inputs = processor(images=[np.ascontiguousarray(picture) for picture in pictures], return_tensors="pt",
                       input_data_format="channels_last")  # fmt: skip
    return inputs["pixel_values"].to(device)
