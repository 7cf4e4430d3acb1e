"""How much GPU memory an erasure needs, on paper: SD 1.5 and SDXL without weights, every tensor that lives counted.

    python -m benchmarks.memory

Predictions and training steps run on torch's meta device, where tensors have shapes and no content. What is counted is
what live tensors take: the weights, what a forward pass holds at its fullest, and what it keeps for the backward pass.
Attention is taken to keep no matrix, as on CUDA. Text encoders, VAE, an allocator's pieces and CUDA's own context (half
a GiB or so) come on top.
"""

from __future__ import annotations

import argparse
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.operations import UNETS

GIB = 2**30
_RANK = 8


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that live, and the most there ever were; not those of ``unet`` itself."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        # Views of them share their storage.
        self._known: set[int] = {one.untyped_storage()._cdata for one in unet.parameters()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Fused(torch.autograd.Function):
    """Attention that keeps what flash attention keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, found)
        return found

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """In place of torch's, which on the meta device makes the whole matrix."""
    return _Fused.apply(query, key, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 32], help="predicted at once")
    options = parser.parse_args()
    F.scaled_dot_product_attention = fused
    heads = ["model", "weights, half", "float32", *(f"{rows} rows, half" for rows in options.rows)]
    heads += [f"{rows} rows, float32" for rows in options.rows]
    heads += ["a step of 4 + 4", "... of 8 + 8", "4 + 4, --low-memory", "2 + 2, --low-memory"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for title, config in UNETS.items():
        half, whole = (weights(config, dtype) for dtype in (torch.float16, torch.float32))
        figures = [half, whole]
        figures += [half + predicting(config, torch.float16, rows) for rows in options.rows]
        figures += [whole + predicting(config, torch.float32, rows) for rows in options.rows]
        figures += [half + learning(config, rows, False) for rows in (8, 16)]
        figures += [half + learning(config, rows, True) for rows in (4, 2)]
        print(f"| {title} | {' | '.join(f'{one / GIB:.1f}' for one in figures)} |", flush=True)


def build(config: dict[str, Any], dtype: torch.dtype) -> UNet2DConditionModel:
    """A UNet without content."""
    with torch.device("meta"):
        return nn.Module.to(UNet2DConditionModel(**config), dtype).requires_grad_(False)


def weights(config: dict[str, Any], dtype: torch.dtype) -> int:
    """Bytes of a UNet's."""
    return sum(one.numel() for one in build(config, dtype).parameters()) * dtype.itemsize


def asked(config: dict[str, Any], dtype: torch.dtype, rows: int) -> dict[str, Any]:
    """What a prediction of so many rows is given."""
    side, width = config["sample_size"], config["cross_attention_dim"]
    with torch.device("meta"):
        given: dict[str, Any] = {
            "sample": torch.empty(rows, 4, side, side, dtype=dtype),
            "timestep": torch.empty(rows, dtype=torch.long),
            "encoder_hidden_states": torch.empty(rows, 77, width, dtype=dtype),
        }
        if "addition_embed_type" in config:
            given["added_cond_kwargs"] = {
                "text_embeds": torch.empty(rows, 1280, dtype=dtype), "time_ids": torch.empty(rows, 6, dtype=dtype)
            }  # fmt: skip
    return given


def predicting(config: dict[str, Any], dtype: torch.dtype, rows: int) -> int:
    """Most bytes beside the weights while so many rows are predicted."""
    unet, given = build(config, dtype), asked(config, dtype, rows)
    with torch.no_grad(), Living(unet) as living:
        unet(**given)
    return living.most


def learning(config: dict[str, Any], rows: int, low_memory: bool) -> int:
    """Most bytes beside the weights in a step that trains keys and values of cross-attention."""
    unet, given = build(config, torch.float16), asked(config, torch.float16, rows)
    if low_memory:
        unet.enable_gradient_checkpointing()
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(("attn2.to_k", "attn2.to_v")):
            outward, inward = layer.weight.shape
            down, up = (nn.Parameter(torch.empty(*size, device="meta")) for size in ((_RANK, inward), (outward, _RANK)))
            layer.register_forward_hook(
                lambda _, inputs, output, down=down, up=up: (
                    output + F.linear(F.linear(inputs[0], down.to(output.dtype)), up.to(output.dtype))
                )
            )
    with Living(unet) as living:
        unet(**given).sample.float().square().mean().backward()
    return living.most


if __name__ == "__main__":
    main()
