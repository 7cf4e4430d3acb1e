"""What an erasure costs on models that do not fit here: operations counted on paper, seconds under stated assumptions.

    python -m benchmarks.operations --forward-equivalents 2000

Counts the operations of one prediction of the UNets of SD 1.5 and SDXL, built without weights, and multiplies.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5, 512 x 512": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SDXL, 1024 x 1024": {
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
PEAK = 989e12
"""Operations a second of an H100 SXM in bfloat16, dense, as its maker states."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forward-equivalents", type=int, required=True, help="as benchmarks/compare.py counts them")
    parser.add_argument("--utilisation", type=float, nargs=2, default=(0.25, 0.45), help="of the peak, low and high")
    options = parser.parse_args()
    print("| model | weights | operations a prediction | of an erasure | seconds on one H100 |\n|---|---|---|---|---|")
    counted = {name: count(config) for name, config in UNETS.items()}
    for name, (weights, kinds) in counted.items():
        operations = sum(kinds.values())
        total = operations * options.forward_equivalents
        slow, fast = (total / (PEAK * share) for share in options.utilisation)
        print(
            f"| {name} | {weights / 1e6:.0f} M | {operations / 1e12:.2f} T | {total / 1e15:.1f} P "
            f"| {fast:.0f} to {slow:.0f} |"
        )
    for name, (_, kinds) in counted.items():
        shares = ", ".join(f"{kind} {100 * part / sum(kinds.values()):.1f} %" for kind, part in kinds.items())
        print(f"\n{name}: {shares}")


def count(config: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Weights of a UNet, and the operations (a multiplication and an addition are two) of one prediction by kind."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        side = config["sample_size"]
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            unet(
                torch.zeros(1, 4, side, side),
                torch.zeros(1),
                torch.zeros(1, 77, config["cross_attention_dim"]),
                added_cond_kwargs=added if "addition_embed_type" in config else None,
            )
    found = {
        module: {str(operation): number for operation, number in operations.items()}
        for module, operations in counter.get_flop_counts().items()
    }

    def below(*ends: str) -> int:
        return sum(sum(operations.values()) for module, operations in found.items() if module.endswith(ends))

    kinds = {
        "convolutions": found["Global"]["aten.convolution"],
        "attention's products": found["Global"]["aten.bmm"],
        "feed-forward": below(".ff"),
        "keys and values of prompts": below("attn2.to_k", "attn2.to_v"),
    }
    kinds["other projections"] = counter.get_total_flops() - sum(kinds.values())
    return sum(parameter.numel() for parameter in unet.parameters()), kinds


if __name__ == "__main__":
    main()
