"""A folder to and from a local S3 server: SPARE's store against s3transfer alone, and against file after file.

    python -m benchmarks.store [--size MIB] [--delay MS] [--rounds N]

Half of the bytes are in three large files, as weights are, half in files of 1 MiB. ``--delay`` is what every request
waits before the server sees it: 0 measures the two processes' CPUs, 20 ms is what a storage in the same region takes.
s3transfer is what ``aws s3 cp`` and boto3 use: parts of 8 MiB, ten at once, nothing compared or verified afterwards.
Each measurement is a process of its own, so that its peak of memory is its own; the median of the rounds is told.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from s3transfer.manager import TransferManager

from serving.services import s3_server
from spare_core.store import open_store
from tests.support.faulty_proxy import Fault, faulty_proxy

MIB = 2**20
LARGE = 3
BUCKET = "benchmark"
WAYS = ("s3transfer", "spare", "one by one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, s3_server(Path(temporary), BUCKET) as environment:
        folder = Path(temporary)
        source = folder / "source"
        write(source, given.size)
        with faulty_proxy(environment["AWS_ENDPOINT_URL"]) as proxy:
            wait = lambda: time.sleep(given.delay / 1000)  # noqa: E731
            proxy.faults += [Fault(method, times=sys.maxsize, before=wait) for method in ("GET", "PUT", "POST", "HEAD")]
            os.environ |= {**environment, **({"AWS_ENDPOINT_URL": proxy.uri} if given.delay else {})}
            measure(source, folder, given.rounds, given.size)


def write(source: Path, size: int) -> None:
    source.mkdir()
    for number in range(size // 2):
        (source / f"{number:04d}.png").write_bytes(os.urandom(MIB))
    for number in range(LARGE):
        with (source / f"{number}.safetensors").open("wb") as file:
            for _ in range(size // 2 // LARGE):
                file.write(os.urandom(MIB))


def measure(source: Path, folder: Path, rounds: int, size: int) -> None:
    client = boto3.session.Session().client("s3")
    open_store(f"s3://{BUCKET}").upload(source, "given")
    for what in ("upload", "download"):
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        memory: dict[str, float] = {}
        for _ in range(rounds):
            for way in WAYS:  # in turn: the machine is not the same from minute to minute
                name = uuid.uuid4().hex
                target = source if what == "upload" else folder / name
                key = name if what == "upload" else "given"
                took, peak = alone(what, way, target, key)
                seconds[way].append(took)
                memory[way] = max(peak, memory.get(way, 0.0))
                clean(client, target, key, what)
        first = statistics.median(seconds["s3transfer"])
        for way in WAYS:
            median = statistics.median(seconds[way])
            print(
                f"{what:8} {size} MiB, {way:10}: {median:6.2f} s, {median / first:4.2f} x s3transfer, "
                f"{memory[way]:.0f} MiB of memory", flush=True,
            )  # fmt: skip


def clean(client: Any, target: Path, key: str, what: str) -> None:
    """The server keeps everything in memory."""
    if what == "download":
        for file in target.iterdir():
            file.unlink()
        return
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{key}/"):
        objects = [{"Key": item["Key"]} for item in page["Contents"]]
        client.delete_objects(Bucket=BUCKET, Delete={"Objects": objects})


def alone(what: str, way: str, target: Path, key: str) -> tuple[float, float]:
    """Seconds and MiB at the peak, in a process of its own."""
    code = f"from benchmarks.store import work; work({what!r}, {way!r}, {str(target)!r}, {key!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, peak = map(float, done.stdout.split())
    return took, peak


def work(what: str, way: str, target: str, key: str) -> None:
    ways: dict[str, tuple[Callable[[Path, str], None], Callable[[Path, str], None]]] = {
        "s3transfer": (transfer_up, transfer_down), "spare": (spare_up, spare_down), "one by one": (send, get),
    }  # fmt: skip
    started = time.perf_counter()
    ways[way][what == "download"](Path(target), key)
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def spare_up(source: Path, key: str) -> None:
    open_store(f"s3://{BUCKET}").upload(source, key)


def spare_down(target: Path, key: str) -> None:
    open_store(f"s3://{BUCKET}").download(key, target)


def transfer_up(source: Path, key: str) -> None:
    with manager() as transfers:
        for path in sorted(source.iterdir()):
            transfers.upload(str(path), BUCKET, f"{key}/{path.name}")


def transfer_down(target: Path, key: str) -> None:
    target.mkdir()
    with manager() as transfers:
        for name in names(key):
            transfers.download(BUCKET, f"{key}/{name}", str(target / name))


def manager() -> TransferManager:
    return TransferManager(boto3.session.Session().client("s3"), TransferConfig())


def names(key: str) -> list[str]:
    pages = boto3.session.Session().client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=key)
    return [item["Key"].rpartition("/")[2] for page in pages for item in page["Contents"]]


def send(source: Path, key: str) -> None:
    client = boto3.session.Session().client("s3")
    for path in sorted(source.iterdir()):
        with path.open("rb") as file:
            client.put_object(Bucket=BUCKET, Key=f"{key}/{path.name}", Body=file)


def get(target: Path, key: str) -> None:
    client = boto3.session.Session().client("s3")
    target.mkdir()
    for name in names(key):
        answer = client.get_object(Bucket=BUCKET, Key=f"{key}/{name}")
        with (target / name).open("wb") as file:
            for chunk in answer["Body"].iter_chunks(MIB):
                file.write(chunk)


if __name__ == "__main__":
    main()
