"""Verification compares weights exactly, and predictions as far as rounding lets them be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spare_core.adapters import verify
from spare_core.adapters.low_rank import Adapter
from spare_core.adapters.verify import verify_adapter
from spare_core.errors import AdapterError
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import load_tiny, store


@pytest.fixture(scope="module")
def adapter(sd1_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random adapter."""
    folder = tmp_path_factory.mktemp("verify") / "adapter"
    store(folder, load_tiny(sd1_dir), "channel")
    return folder


def disturbed(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Let every prediction be another one each time, by up to ``size``, as on a CPU whose kernels round otherwise."""
    probe, generator = verify._probe, torch.Generator().manual_seed(0)

    def rounding(denoiser: UNetDenoiser) -> Tensor:
        exact = probe(denoiser)
        return exact + size * (2.0 * torch.rand(exact.shape, generator=generator) - 1.0)

    monkeypatch.setattr(verify, "_probe", rounding)


def test_a_sound_adapter_passes_where_predictions_round_otherwise(
    adapter: Path, sd1_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed(monkeypatch, 2e-6)
    assert verify_adapter(adapter, str(sd1_dir))["reversible"] is True


def left_on(self: Adapter, denoiser: UNetDenoiser, moved: float, hooked: bool) -> Iterator[None]:
    """An adapter that does not come off as it should."""
    layer = next(iter(denoiser.target_layers().values()))
    if hooked:
        layer.register_forward_hook(lambda module, inputs, output: None)
    with torch.no_grad():
        before = layer.weight[0, 0].clone()
        layer.weight[0, 0] += 0.01
        yield
        layer.weight[0, 0] = before + moved


@pytest.mark.parametrize(
    ("moved", "hooked", "words"), [(1e-6, False, "weights have changed"), (0.0, True, r"\+1 hooks act on its layers")]
)
def test_what_stays_behind_is_found_however_little_it_does(
    adapter: Path, sd1_dir: Path, monkeypatch: pytest.MonkeyPatch, moved: float, hooked: bool, words: str
) -> None:
    """Neither changes a prediction beyond rounding."""
    leaving = contextlib.contextmanager(lambda self, denoiser: left_on(self, denoiser, moved, hooked))
    monkeypatch.setattr(Adapter, "attached", leaving)
    monkeypatch.setattr(verify, "LORA", "not asked here")
    with pytest.raises(AdapterError, match=f"is not what it was: .*{words}"):
        verify_adapter(adapter, str(sd1_dir))


def test_a_difference_beyond_rounding_is_refused(adapter: Path, sd1_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LORA", "not asked here")
    disturbed(monkeypatch, 1e-3)
    with pytest.raises(AdapterError, match=r"its predictions differ by .*, more than"):
        verify_adapter(adapter, str(sd1_dir))
