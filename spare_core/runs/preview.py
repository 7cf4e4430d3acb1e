"""The picture that lies beside a LoRA file in A1111 and ComfyUI: drawn by loading that file as those who use it do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import torch

from spare_core.adapters.directory import StoredAdapter, check_base
from spare_core.adapters.export import changing_layers
from spare_core.adapters.manifest import LORA
from spare_core.adapters.verify import TOLERANCE, attached_probe, stock_difference
from spare_core.concepts.erasures import Erasures
from spare_core.errors import AdapterError, OutputError
from spare_core.files.atomic import write_bytes
from spare_core.models.device import Device
from spare_core.models.loading import load_denoiser
from spare_core.runs.generate import draw, png

SUFFIX: Final = ".preview.png"
_STEPS: Final = 20
_GUIDANCE: Final = 4.0


class Preview:
    """What is drawn for the first erased concept, without the LoRA on the left and with it on the right.

    Everything is checked when one is made, before the LoRA is written.
    """

    def __init__(
        self, stored: StoredAdapter, file: Path, model: str, any_base: bool = False, device: Device = "auto"
    ) -> None:
        """``file`` is the LoRA that is going to be written.

        Raises:
            OutputError: if there is a preview already.
            ModelError: if ``model`` cannot be loaded, or is another base.
        """
        self.stored, self.file, self.picture = stored, file, file.with_suffix(SUFFIX)
        if os.path.lexists(self.picture):
            raise OutputError(f"{self.picture} exists; nothing is ever overwritten, give a new --output")
        self._denoiser = load_denoiser(model, device, "float32")
        if not any_base:
            check_base(stored, self._denoiser.files.digest(), model)

    def write(self) -> dict[str, Any]:
        """Draw it; returns ``preview``, its path, and for a LoRA that is exact ``diffusers_difference``.

        Raises:
            AdapterError: if diffusers makes another change of the file than was trained.
        """
        exact = LORA in self.stored.manifest["files"]
        layers = len(changing_layers(self.stored))
        trained = attached_probe(self._denoiser, self.stored)
        difference = stock_difference(self._denoiser, trained, self.file, layers)
        if exact and difference > TOLERANCE:
            raise AdapterError(
                f"{self.file}: predictions under diffusers' load_lora_weights differ from the trained ones by "
                f"{difference:.1e}; at most {TOLERANCE:.0e} is allowed; please report this"
            )
        prompt = self._prompt()
        drawn = [self._draw(prompt)]
        self._denoiser.pipeline.load_lora_weights(str(self.file))
        try:
            drawn.append(self._draw(prompt))
        finally:
            self._denoiser.pipeline.unload_lora_weights()
        write_bytes(self.picture, png(torch.cat(drawn, dim=-1)))
        found = {"preview": str(self.picture), "preview_prompt": prompt}
        return found | ({"diffusers_difference": difference} if exact else {})

    def _prompt(self) -> str:
        part = next(iter(Erasures.of(self.stored.manifest)))
        return part.prompt(part.concept, part.contexts[0] if part.contexts else "")

    def _draw(self, prompt: str) -> torch.Tensor:
        return draw(self._denoiser, [], [[prompt]], [0], _STEPS, _GUIDANCE)[0]
