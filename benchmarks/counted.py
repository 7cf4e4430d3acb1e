"""Count what a UNet is asked in this process, and what the process takes.

    python benchmarks/counted.py OUTPUT.json spare erase canvas --erase Cat ...

Runs a ``spare`` command and writes ``rows`` (predictions made), ``forward_equivalents`` (those, and twice those that a
backward pass went through), the seconds from the first prediction to the last, and ``peak``, the most memory in bytes.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def count_unet(unet_class: Any) -> Callable[[], dict[str, float]]:
    """Count every call of ``unet_class.forward`` from here on; the result says how many rows there were."""
    forward, found = unet_class.forward, {"rows": 0, "forward_equivalents": 0, "first": 0.0, "last": 0.0}

    @functools.wraps(forward)
    def counted(self: Any, sample: Any, *args: Any, **named: Any) -> Any:
        found["first"] = found["first"] or time.perf_counter()
        result = forward(self, sample, *args, **named)
        output = result[0] if isinstance(result, tuple) else result.sample
        found["rows"] += len(sample)
        found["forward_equivalents"] += len(sample) * (3 if output.requires_grad else 1)
        found["last"] = time.perf_counter()
        return result

    unet_class.forward = counted
    return lambda: found


def write(path: Path, found: dict[str, float]) -> None:
    """Write the counts as JSON; seconds instead of the clock's readings."""
    facts = {name: found[name] for name in ("rows", "forward_equivalents")}
    facts["seconds"] = round(found["last"] - found["first"], 2)
    # Not getrusage: its figure begins with that of the process this one was forked from.
    facts["peak"] = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    path.write_text(json.dumps(facts))


def main() -> None:
    output, command = Path(sys.argv[1]), sys.argv[2:]
    sys.argv = command
    from diffusers import UNet2DConditionModel

    from spare_core.cli import main as spare

    found = count_unet(UNet2DConditionModel)
    try:
        spare()
    finally:
        write(output, found())


if __name__ == "__main__":
    main()
