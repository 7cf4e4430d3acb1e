"""The adapter in memory: masked low-rank updates, attached to a denoiser without touching its weights.

An update is added to a layer's output by a forward hook, so the base weights are never written and taking the adapter
off is exact. PEFT is what loads the finished LoRA elsewhere; it is not used here because its layers cannot hold a mask,
and its variant API is private.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spare_core.adapters.layer_mask import LayerMask, Masks
from spare_core.errors import AdapterError, SettingsError
from spare_core.models.denoiser import Denoiser
from spare_core.streams import stream


class LowRankUpdate(nn.Module):
    """``scale * M * (B A)`` of one layer: A ``(r, in)``, B ``(out, r)``.

    With rows-and-columns masks the mask lives in the zeros of B and A. With a mask of single weights the product is
    masked as it is used. A layer whose mask is empty keeps its A and B of zeros: adapters of one base then have equal
    layers and ranks, which diffusers' hot-swapping needs.
    """

    rows: Tensor
    columns: Tensor
    entries: Tensor | None

    def __init__(self, down: Tensor, up: Tensor, scale: float, mask: LayerMask) -> None:
        super().__init__()
        self.moves = mask.count() > 0
        self.whole = bool(mask.rows.all() and mask.columns.all())
        self.down = nn.Parameter(down * mask.columns)
        self.up = nn.Parameter(up * mask.rows[:, None])
        self.scale = scale
        self.register_buffer("rows", mask.rows.to(down.dtype)[:, None])
        self.register_buffer("columns", mask.columns.to(down.dtype))
        self.register_buffer("entries", None if mask.entries is None else mask.entries.to(down.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """The addition to the layer's output."""
        if self.entries is None:
            down, up = self.down.to(inputs.dtype), self.up.to(inputs.dtype)
            return F.linear(F.linear(inputs, down), up) * self.scale
        return F.linear(inputs, self.delta().to(inputs.dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return (self.up.shape[0], self.down.shape[1])

    def delta(self) -> Tensor:
        """The change of the weight, ``(out, in)``."""
        product = self.scale * (self.up @ self.down)
        return product if self.entries is None else product * self.entries

    @torch.no_grad()
    def project(self) -> None:
        """Put the masked rows and columns back to zero after an optimiser's step."""
        if not self.whole:
            self.down.mul_(self.columns)
            self.up.mul_(self.rows)


class DeltaUpdate(nn.Module):
    """A fixed change of one layer's weight, ``(out, in)``."""

    values: Tensor

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", delta)
        self.moves = bool(delta.any())

    def forward(self, inputs: Tensor) -> Tensor:
        """The addition to the layer's output."""
        return F.linear(inputs, self.values.to(inputs.dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return (self.values.shape[0], self.values.shape[1])

    def delta(self) -> Tensor:
        """The change of the weight."""
        return self.values


class Adapter:
    """Updates by layer name. Off unless inside :meth:`attached`."""

    def __init__(self, updates: Mapping[str, LowRankUpdate | DeltaUpdate]) -> None:
        self.updates = dict(updates)

    @classmethod
    def initialise(cls, denoiser: Denoiser, masks: Masks, rank: int, alpha: float, seed: int) -> Adapter:
        """A fresh adapter that changes nothing: A is normal with deviation 1/sqrt(in), B is zero."""
        generator = stream(seed, "adapter")
        layers = denoiser.target_layers()
        check_rank(layers, rank)
        updates = {}
        for name, layer in layers.items():  # the model's order, not the masks': it decides what each layer draws
            rows, columns = layer.weight.shape
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            updates[name] = LowRankUpdate(down, torch.zeros(rows, rank), alpha / rank, masks[name]).to(denoiser.device)
        return cls(updates)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in a fixed order: those of the layers that may move."""
        return [parameter for update in self.updates.values() if update.moves for parameter in update.parameters()]

    def project(self) -> None:
        """See :meth:`LowRankUpdate.project`; of what is trained."""
        for update in self.updates.values():
            if update.moves and isinstance(update, LowRankUpdate):
                update.project()

    def to(self, device: torch.device) -> Adapter:
        """This adapter, moved to ``device``."""
        for update in self.updates.values():
            update.to(device)
        return self

    @contextlib.contextmanager
    def attached(self, denoiser: Denoiser) -> Iterator[None]:
        """Predictions of ``denoiser`` include the updates while inside; several adapters add up.

        Raises:
            AdapterError: if a layer is not in the model or has another shape, if there is no layer at all, or if the
                model computes past its layers' hooks.
        """
        _check_hooks_are_called(denoiser.weights)
        layers = self._matched(denoiser)
        handles = []
        try:
            for name, update in self.updates.items():
                if update.moves:
                    handles.append(layers[name].register_forward_hook(_adding(update)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _matched(self, denoiser: Denoiser) -> dict[str, nn.Linear]:
        layers = denoiser.target_layers()
        missing = [name for name in self.updates if name not in layers]
        if missing or not self.updates:
            raise AdapterError(
                f"{len(missing)} of the adapter's {len(self.updates)} layers are not in this model "
                f"({', '.join(missing[:3])}); it was made for another architecture"
            )
        for name, update in self.updates.items():
            shape = tuple(layers[name].weight.shape)
            if shape != update.shape:
                raise AdapterError(f"layer {name}: the adapter's update is {update.shape}, the model's weight {shape}")
        return layers


def check_rank(layers: Mapping[str, nn.Linear], rank: int) -> None:
    """Refuse a rank that a layer cannot have.

    Raises:
        SettingsError: naming the smallest layer.
    """
    name, layer = min(layers.items(), key=lambda item: min(item[1].weight.shape))
    smallest = min(layer.weight.shape)
    if rank > smallest:
        raise SettingsError(
            [f"rank is {rank}, but layer {name} is {tuple(layer.weight.shape)}; allowed: at most {smallest}"]
        )


def _check_hooks_are_called(weights: nn.Module) -> None:
    """Refuse a model whose layers are not called: an adapter would silently change nothing."""
    for name, module in weights.named_modules():
        where = f"{type(weights).__name__}{'.' if name else ''}{name}"
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise AdapterError(
                f"{where} is compiled, and compiled code does not see an adapter that comes or goes; attach it to the "
                "model as it was loaded, or export the adapter merged and compile that"
            )
        # Not by the flag fused_projections: diffusers leaves it set when they are no longer used.
        if type(getattr(module, "processor", None)).__name__.startswith("Fused"):
            raise AdapterError(
                f"the projections of {where} are fused, which passes by the layers that an adapter changes; call "
                "unfuse_qkv_projections() first"
            )


def _adding(update: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + update(inputs[0])

    return hook
