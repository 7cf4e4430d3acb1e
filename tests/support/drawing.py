"""``python -m tests.support.drawing MODEL``: what a registered model draws, in a process that knows its address only.

Prints the first bytes of a picture.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import mlflow
import mlflow.pyfunc

from tests.support import forking


def draw(model: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run this module as a process."""
    return forking.run([sys.executable, "-m", "tests.support.drawing", model], env=environment, timeout=120)


if __name__ == "__main__":
    drawn = mlflow.pyfunc.load_model(sys.argv[1]).predict(
        ["A Cat image in Photo style."], params={"num_inference_steps": 2}
    )
    print(drawn[0][:4])
