"""Run the trainer of the paper's authors (PyPI ``vision-unlearning`` 1.0.0) on a CPU, in an environment of its own.

    ENVIRONMENT/bin/python benchmarks/authors_trainer.py JOB.json

Its code stays untouched. What it needs of CUDA is answered from outside, of torchvision only the transforms it uses are
here, and what belongs to its evaluation (metrics, plots, model cards) is left out: only the training is compared.
``benchmarks/compare.py`` makes the environment and the job.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

LEFT_OUT = ("image_similarity_measures", "lpips", "matplotlib", "piq", "torch_fidelity", "torchmetrics", "wandb")
"""Packages of its evaluation."""


class _LeftOut(MetaPathFinder, Loader):
    """Modules whose every name is there and does nothing."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in LEFT_OUT else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def torchvision_transforms() -> types.ModuleType:
    """The seven transforms it composes, over Pillow and numpy."""
    import numpy as np
    import torch
    from PIL import Image

    class Compose:
        def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
            self.steps = steps

        def __call__(self, value: Any) -> Any:
            for step in self.steps:
                value = step(value)
            return value

    def resize(size: int, interpolation: Any = None) -> Callable[[Any], Any]:
        def apply(picture: Any) -> Any:
            scale = size / min(picture.size)
            return picture.resize([round(scale * side) for side in picture.size], Image.Resampling.BILINEAR)

        return apply

    def crop(size: int) -> Callable[[Any], Any]:
        """In the middle or anywhere: the pictures given are of that size."""

        def apply(picture: Any) -> Any:
            if picture.size != (size, size):
                raise ValueError(f"this benchmark gives pictures of {size} x {size}, not {picture.size}")
            return picture

        return apply

    def to_tensor(picture: Any) -> Any:
        return torch.from_numpy(np.array(picture, dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()

    module = types.ModuleType("torchvision.transforms")
    module.Compose, module.Resize = Compose, resize
    module.CenterCrop = module.RandomCrop = crop
    module.ToTensor = lambda: to_tensor
    module.Normalize = lambda mean, deviation: lambda picture: (picture - mean[0]) / deviation[0]
    module.Lambda = lambda function: function
    module.InterpolationMode = types.SimpleNamespace(BILINEAR="bilinear")
    return module


def stand_in() -> None:
    """Everything that is answered from outside; before its modules are imported."""
    import torch

    sys.meta_path.append(_LeftOut())
    transforms = torchvision_transforms()
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms, torchvision.__path__, torchvision.__spec__ = transforms, [], ModuleSpec("torchvision", None)
    torchvision.datasets = MagicMock(name="torchvision.datasets")
    sys.modules |= {"torchvision": torchvision, "torchvision.transforms": transforms}
    torch.cuda.synchronize = lambda *args: None
    torch.cuda.reset_peak_memory_stats = lambda *args: None
    torch.cuda.max_memory_allocated = lambda *args: 0


def main() -> None:
    started = time.perf_counter()
    job = json.loads(Path(sys.argv[1]).read_text())
    stand_in()
    from counted import count_unet, write
    from diffusers import UNet2DConditionModel
    from vision_unlearning.unlearner import lora
    from vision_unlearning.unlearner.fade import UnlearnerLoraDistillation
    from vision_unlearning.utils.gradient_weighting import GradientWeightingMethodSimple

    found = count_unet(UNet2DConditionModel)
    # Its own evaluation, after the adapter is written.
    lora.unlearn_lora = lambda *args, **named: (None, None, None)
    lora.EvaluatorTextToImage = lambda **named: types.SimpleNamespace(evaluate=lambda: ([], {}))
    lora.MetricImageTextSimilarity = lora.save_model_card = lambda *args, **named: None
    trainer = UnlearnerLoraDistillation(
        **job["settings"],
        device="cpu",
        dataset_forget_name="given",
        dataset_retain_name="given",
        gradient_weighting_method=GradientWeightingMethodSimple(**job["weights"]),
        compute_memory=False,
    )
    trainer.train()
    write(Path(job["counts"]), found())
    print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
