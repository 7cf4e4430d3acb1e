"""A folder to and from a local S3 server, file after file against all at once.

    python -m benchmarks.store [DELAY]

DELAY is what every request waits before the server sees it, in milliseconds: 0 measures the two processes' CPUs, 20 is
what a storage in the same region takes. One by one: a plain boto3 client that sends and gets whole files.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

from examples.services import s3_server
from spare_core.store import open_store
from tests.faulty_proxy import Fault, faulty_proxy

SMALL, LARGE = 200, 3
MIB = 2**20
ROUNDS = 3


def main() -> None:
    delay = float(sys.argv[1]) / 1000 if len(sys.argv) > 1 else 0.0
    with tempfile.TemporaryDirectory() as temporary, s3_server(Path(temporary), "benchmark") as environment:
        folder = Path(temporary)
        source = folder / "source"
        source.mkdir()
        for number in range(SMALL):
            (source / f"{number:03d}.png").write_bytes(os.urandom(64 * 2**10))
        for number in range(LARGE):
            (source / f"{number}.safetensors").write_bytes(os.urandom(48 * MIB))
        endpoint = environment["AWS_ENDPOINT_URL"]
        os.environ |= {name: value for name, value in environment.items() if name.startswith("AWS_")}
        with faulty_proxy(endpoint) as proxy:
            wait = lambda: time.sleep(delay)  # noqa: E731
            proxy.faults += [Fault(method, times=sys.maxsize, before=wait) for method in ("GET", "PUT", "POST", "HEAD")]
            os.environ["AWS_ENDPOINT_URL"] = proxy.uri if delay else endpoint
            measure(source, folder)


def measure(source: Path, folder: Path) -> None:
    client = boto3.session.Session().client("s3")
    store = open_store("s3://benchmark")
    ways: dict[str, tuple[Callable[[str], None], Callable[[str], None]]] = {
        "upload": (lambda key: send(client, source, key), lambda key: store.upload(source, key)),
        "download": (lambda key: get(client, folder / key), lambda key: store.download("given", folder / key)),
    }
    store.upload(source, "given")
    size = sum(path.stat().st_size for path in source.iterdir()) / MIB
    for name, both in ways.items():
        serial, parallel = (min(timed(way) for _ in range(ROUNDS)) for way in both)
        print(
            f"{name} of {SMALL + LARGE} files, {size:.0f} MiB: one by one {serial:.2f} s, at once {parallel:.2f} s, "
            f"{serial / parallel:.1f} times faster"
        )


def timed(way: Callable[[str], None]) -> float:
    key = uuid.uuid4().hex
    started = time.perf_counter()
    way(key)
    return time.perf_counter() - started


def send(client: Any, source: Path, key: str) -> None:
    for path in sorted(source.iterdir()):
        with path.open("rb") as file:
            client.put_object(Bucket="benchmark", Key=f"{key}/{path.name}", Body=file)


def get(client: Any, target: Path) -> None:
    target.mkdir()
    for item in client.list_objects_v2(Bucket="benchmark", Prefix="given/")["Contents"]:
        answer = client.get_object(Bucket="benchmark", Key=item["Key"])
        with (target / Path(item["Key"]).name).open("wb") as file:
            for chunk in answer["Body"].iter_chunks(MIB):
                file.write(chunk)


if __name__ == "__main__":
    main()
