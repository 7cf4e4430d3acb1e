"""Canvas and Canvas160: built-in models and benchmarks, miniatures of UnlearnCanvas in the Stable Diffusion layout.

Importing this is light, and makes models, suites and judges known by the names "canvas" and "canvas160".
"""

from __future__ import annotations

from functools import partial
from typing import Any

from spare_core import built_in
from spare_core.canvas.grid import Grid
from spare_core.canvas.protocol import CANVAS
from spare_core.canvas.protocol160 import CANVAS160


def _erasure(grid: Grid, *args: Any) -> Any:
    from spare_core.canvas.erasures import grid_erasure

    return grid_erasure(grid, *args)


def _judge(grid: Grid, suite: Any, device: Any) -> Any:
    from spare_core.canvas.judge import GridJudge

    return GridJudge(grid, suite, device)


for _grid in (CANVAS, CANVAS160):
    built_in.register(
        built_in.BuiltIn(
            name=_grid.name,
            pipeline=_grid.pipeline,
            concepts={"style": _grid.styles, "object": _grid.objects},
            erasure=partial(_erasure, _grid),
            suite=_grid.suite,
            judge=partial(_judge, _grid),
        )
    )
