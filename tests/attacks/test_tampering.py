"""Tampered adapters change the weights by what their names say."""

from __future__ import annotations

import torch

from spare_core.adapters.low_rank import Adapter, LowRankUpdate
from spare_core.attacks.tampering import forms, in_form
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import random_adapter


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: one.delta().detach() for name, one in adapter.updates.items()}


def test_each_form_is_what_its_name_says(denoiser: UNetDenoiser) -> None:
    adapter = random_adapter(denoiser, "channel")
    whole, made = deltas(adapter), {form: deltas(in_form(adapter, form)) for form in forms(adapter)}
    assert {*made} == {"scaled to 0.5", "scaled to 0.75", "half of its rank", "int8"}
    for name, delta in whole.items():
        torch.testing.assert_close(made["scaled to 0.5"][name], delta / 2)
        torch.testing.assert_close(made["scaled to 0.75"][name], delta * 0.75)
        half = made["half of its rank"][name]
        update = adapter.updates[name]
        assert isinstance(update, LowRankUpdate)
        assert torch.linalg.matrix_rank(half, atol=1e-6) <= len(update.down) // 2
        levels = delta.abs().amax(dim=1, keepdim=True) / 127
        assert ((made["int8"][name] - delta).abs() <= levels / 2 + 1e-7).all()
    assert any(not torch.equal(made["int8"][name], delta) for name, delta in whole.items())


def test_what_is_no_low_rank_update_has_no_ranks_to_cut(denoiser: UNetDenoiser) -> None:
    adapter = random_adapter(denoiser, "weight")
    assert "half of its rank" not in forms(adapter)
    assert in_form(adapter, "half of its rank") is adapter
