"""What a GPU is asked: few calls, none of one row, and nothing is waited for in between. Counted on the true layouts
with the rows at once that a GPU has room for; seconds are benchmarks/gpu.py's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from spare_core.concepts.erasures import Erasures
from spare_core.concepts.lists import build_erasure
from spare_core.method.algorithm import overwrite, prepare
from spare_core.method.settings import EraseSettings
from spare_core.method.trajectories import Query, calls, sample_trajectories
from spare_core.models import room
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser


@contextmanager
def counted(denoiser: UNetDenoiser) -> Iterator[list[int]]:
    """The rows of each call of the UNet."""
    rows: list[int] = []
    handle = denoiser.weights.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["sd1_dir", "sdxl_dir"])
def test_an_erasure_asks_in_forty_calls(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(request.getfixturevalue(kind))
    denoiser, asked = load_denoiser(folder, "cpu", "float32"), build_erasure(folder, "Neon Lines", "Photo", "style")
    monkeypatch.setattr(denoiser, "rows_at_once", lambda side: room.MOST)
    settings = EraseSettings.from_mapping({"enough_residual": 1.0, "enough_drift": 1.0})
    with counted(denoiser) as rows:
        prepared = prepare(denoiser, Erasures(asked), settings)
        found = overwrite(prepared, settings)
    probes = prepared.reporting.held_out
    reported = calls(len(probes.forget.unit) + len(probes.retain.unit), room.MOST)
    assert found.state.step == 0
    assert len(rows) - len(reported) <= 40
    assert min(rows) > 1


def test_nothing_is_waited_for_inside_of_a_trajectory(sd1_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that the host looks at, or a tensor that goes there, waits for all that was asked before it."""
    denoiser = load_denoiser(str(sd1_dir), "cpu", "float32")
    waited: list[str] = []
    asking: list[int] = []

    def watched(name: str) -> Any:
        real = getattr(torch.Tensor, name)

        def look(self: torch.Tensor, *args: Any, **named: Any) -> Any:
            caller = sys._getframe(1)
            copied = name != "to" or any(isinstance(one, torch.device) for one in args)
            # diffusers moves timesteps to where they are already.
            if asking and copied and "diffusers" not in caller.f_code.co_filename:
                waited.append(f"{name} at {caller.f_code.co_filename}:{caller.f_lineno}")
            return real(self, *args, **named)

        return look

    for name in ("cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "to"):
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    table = denoiser.encode_prompts(["a cat in Neon", "a cat in Photo", ""])
    queries = [Query((0, 1, 2), driver=0, empty=2), Query((1, 2), driver=0, empty=1)] * 3
    first = denoiser.weights.register_forward_hook(lambda *_: asking.append(1))
    real = denoiser.denoise
    steps = 4

    def denoise(*args: Any) -> torch.Tensor:
        found = real(*args)
        if len(asking) == steps:
            asking.clear()
        return found

    monkeypatch.setattr(denoiser, "denoise", denoise)
    monkeypatch.setattr(denoiser, "rows_at_once", lambda side: room.MOST)
    try:
        sample_trajectories(denoiser, table, queries, steps, 2.0, torch.Generator().manual_seed(0))
    finally:
        first.remove()
    assert waited == []


def test_no_call_is_of_one_row_unless_there_is_but_one() -> None:
    for most in (2, 3, 8):
        for count in range(1, 40):
            parts = calls(count, most)
            assert [i for part in parts for i in range(count)[part]] == [*range(count)]
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) <= most + 1
            assert count == 1 or min(sizes) > 1
    assert calls(0, 8) == []


def test_as_many_rows_as_half_of_the_free_memory_has_room_for() -> None:
    gib = 2**30
    assert room.rows_that_fit(80 * gib, 0.15 * gib) == 128
    assert room.rows_that_fit(70 * gib, 0.7 * gib) == 32
    assert room.rows_that_fit(66 * gib, 0.7 * gib) == 32, "a little less changes nothing"
    assert room.rows_that_fit(8 * gib, 0.7 * gib) == 4
    assert room.rows_that_fit(0, 0.7 * gib) == 2
