"""The long proof of what tests/registry/test_concurrency.py shows in a few rounds: promotions killed anywhere, and at
once.

    python -m benchmarks.promotion_races --rounds 200 --points 50 --output out/races

Starts an MLflow server, registers three versions, races two processes and kills one at random points, and asks after
every round that log and aliases agree.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from serving.services import mlflow_server
from spare_core.models.loading import load_denoiser
from spare_core.registry.views import verify
from spare_core.store import open_store
from tests.support.forked import killed, raced
from tests.support.registrations import register_one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    folder = options.output.absolute()
    folder.mkdir(parents=True)
    place = str(folder / "store")
    with mlflow_server(folder, "sqlite:///runs.db", str(folder / "artifacts")) as uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        denoiser, store = load_denoiser("canvas", "cpu", "float32"), open_store(place)
        for number in (1, 2, 3):
            name = register_one(folder / str(number), denoiser, "Raced", number, judged=False, store=store).name
        raced(name, place, options.rounds)
        print(json.dumps(verify(name, store)))
        killed(name, place, options.points, 7)
        print(json.dumps(verify(name, store)))


if __name__ == "__main__":
    main()
