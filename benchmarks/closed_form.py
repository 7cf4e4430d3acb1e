"""The closed form at the widths of a real model: seconds on one core, and how far its updates are from solving each
layer from the definitions.

    OMP_NUM_THREADS=1 python -m benchmarks.closed_form "SDXL, 1024 x 1024"

Weights and token embeddings are random; the widths are the model's own. Layers of keys have their moments in common and
are solved for once; each layer of values has its own, and is solved for at every ridge of the search, of which an
erasure tries about five. A few layers of values are timed, spread over the model, and the others counted like them.
Compared is the product B A with the one of an LU decomposition of G and a full eigendecomposition of D G D'.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.operations import UNETS
from spare_core.method.solve import _EPSILON, Moments, factorise, leading

_RANK = 8
_RIDGE = 0.8
_COMPARED = 3


def main() -> None:
    """Print the seconds of each ridge and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=UNETS)
    options = parser.parse_args()
    shapes = list(text_shapes(options.model))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) / shape[1] ** 0.5 for shape in shapes]
    moments = random_moments(shapes[0][1], generator)
    print(f"{options.model}: {len(shapes)} layers that read the prompt, {torch.get_num_threads()} threads")
    keys, values = weights[::2], weights[1::2]
    started = time.perf_counter()
    updates = solve(keys, moments, _RIDGE, shared=True)
    print(f"keys, {len(keys)} layers: {time.perf_counter() - started:.1f} s", flush=True)
    chosen = torch.linspace(0, len(values) - 1, _COMPARED).round().int().tolist()
    some, started = [], time.perf_counter()
    for i in chosen:
        some += solve([values[i]], moments, _RIDGE, shared=False)
    each = (time.perf_counter() - started) / _COMPARED
    print(f"values, {len(values)} layers: {each:.2f} s each, {each * len(values):.0f} s for a ridge", flush=True)
    started = time.perf_counter()
    off = max(difference(update, alone(values[i], moments, _RIDGE)) for update, i in zip(some, chosen, strict=True))
    each = (time.perf_counter() - started) / _COMPARED
    off = max([off, *(difference(updates[i], alone(keys[i], moments, _RIDGE)) for i in chosen)])
    print(f"a layer from the definitions: {each:.1f} s; largest relative difference {off:.0e}")


def text_shapes(model: str) -> Iterator[tuple[int, int]]:
    """``(out, in)`` of the key and value projections of cross-attention."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[model])
    for name, layer in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            yield tuple(layer.weight.shape)


def random_moments(width: int, generator: torch.Generator) -> Moments:
    """Of a concept of 600 tokens, a surrogate near it, and retained texts of more tokens than the width."""
    concept = torch.randn(600, width, generator=generator, dtype=torch.double)
    shift = 0.3 * torch.randn(600, width, generator=generator, dtype=torch.double)
    retained = torch.randn(2 * width, width, generator=generator, dtype=torch.double)
    return Moments(
        concept.T @ concept / len(concept), shift.T @ concept / len(concept), retained.T @ retained / len(retained)
    )


def solve(weights: list[Tensor], moments: Moments, ridge: float, shared: bool) -> list[tuple[Tensor, Tensor]]:
    """B and A of every layer, as :func:`spare_core.method.solve.overwrite` finds them."""
    factors = factorise(moments, ridge, torch.ones(len(moments.concept), dtype=torch.bool), shared)
    found = []
    for weight in weights:
        wide = weight.double()
        up = leading(factors.spread(wide), _RANK)
        found.append((up, factors.solved(up.T @ wide)))
    return found


def alone(weight: Tensor, moments: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """The same of one layer from the definitions."""
    gram = moments.concept + ridge * moments.retained
    gram = gram + _EPSILON * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    whole = torch.linalg.solve(gram, (weight.double() @ moments.shift).T).T
    _, directions = torch.linalg.eigh(whole @ gram @ whole.T)
    up = directions[:, -_RANK:]
    return up, up.T @ whole


def difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Of the products, relative to the second."""
    first, second = one[0] @ one[1], other[0] @ other[1]
    return float((first - second).norm() / second.norm())


if __name__ == "__main__":
    main()
