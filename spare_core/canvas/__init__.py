"""Canvas: the built-in model and benchmark, a miniature of UnlearnCanvas in the Stable Diffusion layout.

Importing this is light, and makes model, suite and judge known by the name "canvas".
"""

from __future__ import annotations

from typing import Any

from spare_core import built_in
from spare_core.canvas import protocol
from spare_core.canvas.files import PIPELINE


def _erasure(*args: Any) -> Any:
    from spare_core.canvas.erasures import canvas_erasure

    return canvas_erasure(*args)


def _judge(suite: Any, device: Any) -> Any:
    from spare_core.canvas.judge import CanvasJudge

    return CanvasJudge(suite, device)


built_in.register(
    built_in.BuiltIn(
        name=protocol.NAME,
        pipeline=PIPELINE,
        concepts={"style": protocol.STYLES, "object": tuple(protocol.OBJECTS)},
        erasure=_erasure,
        suite=protocol.suite,
        judge=_judge,
    )
)
