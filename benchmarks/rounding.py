"""How much of a measured drift is rounding: an adapter that changes next to nothing, in half precision and in float32.

    python -m benchmarks.rounding canvas --device cuda

Each row is the mean drift of a random adapter whose update has so large a share of the weights' size: what a
measurement in the run's own precision reads ("as it computes"), and what SPARE reads, in float32 ("measured").
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.method.masks import whole_layers
from spare_core.method.probes import draw_held_out
from spare_core.method.residual import Meter
from spare_core.method.settings import EraseSettings
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser

SHARES = (1e-5, 1e-4, 1e-3)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    denoiser = load_denoiser(options.model, options.device, options.dtype)
    concepts = ("Neon Lines", "Photo") if options.model == "canvas" else ("Claude Monet", "a photograph")
    erasures = Erasures(build_erasure(options.model, *concepts, "style"))
    print(f"| share of the weights | as it computes ({options.dtype}) | measured |\n|---|---|---|")
    for share in SHARES:
        adapter = small_adapter(denoiser, share)
        found = [drift(denoiser, erasures, adapter)]
        with as_it_computes(denoiser):
            found.insert(0, drift(denoiser, erasures, adapter))
        print(f"| {share:g} | " + " | ".join(f"{value:.1e}" for value in found) + " |", flush=True)


def small_adapter(denoiser: UNetDenoiser, share: float) -> Adapter:
    """Updates whose norm has that share of their weight's."""
    layers = denoiser.target_layers()
    adapter = Adapter.initialise(denoiser, whole_layers(layers, layers), 4, 4.0, 0)
    for name, update in adapter.updates.items():
        assert isinstance(update, LowRankUpdate)
        torch.nn.init.normal_(update.up, generator=torch.Generator(update.up.device).manual_seed(0))
        update.up.data *= share * layers[name].weight.float().norm() / update.delta().norm()
    return adapter


def drift(denoiser: UNetDenoiser, erasures: Erasures, adapter: Adapter) -> float:
    """Mean drift of the kept concepts."""
    return Meter(denoiser, draw_held_out(denoiser, erasures, EraseSettings(), "report")).measure(adapter).mean_drift


@contextlib.contextmanager
def as_it_computes(denoiser: UNetDenoiser) -> Iterator[None]:
    """Measure in the precision of the run."""
    with mock.patch.object(denoiser, "precise", lambda tf32=False: contextlib.nullcontext()):
        yield


if __name__ == "__main__":
    main()
