"""Build the image and list what is in it: ``python -m image.build --device cuda --tag registry/spare:0.1.0``.

The list is a software bill of materials in SPDX's JSON, of Debian's packages and Python's, made by syft.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import importlib.metadata
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from image.engine import base_image, docker, engine

ROOT: Final = Path(__file__).parents[1]
VERSION: Final = importlib.metadata.version("spare-unlearning")
DEVICES: Final = ("cpu", "cuda")
SYFT: Final = ROOT / ".venv-tools" / "bin" / "syft"
_AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")


def build(environment: dict[str, str], device: str, tag: str) -> None:
    """Build the image for a device under a tag.

    What lies in the folder that PIP_FIND_LINKS names is served to the build, in which torch's own index is not asked
    then; authorities that this machine trusts are trusted while it lasts. Neither leaves anything in the image.

    Raises:
        RuntimeError: if it cannot be built, with the builder's words.
    """
    links = os.environ.get("PIP_FIND_LINKS", "")
    arguments = {"DEVICE": device, "BASE": base_image(environment), "VERSION": VERSION, "REVISION": _revision()}
    if links:
        arguments["TORCH_INDEX"] = ""
    with _served(links) as url, tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
        # A secret, since that is no part of what decides whether a step has to be done anew.
        config.write(f"[global]\nfind-links = {url}\n" if url else "")
        config.flush()
        secrets = {"pip": config.name, **({"ca": str(_AUTHORITIES)} if _AUTHORITIES.exists() else {})}
        given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
        given += [part for name, path in secrets.items() for part in ("--secret", f"id={name},src={path}")]
        docker(environment, "build", "--network=host", *given, "--tag", tag, str(ROOT))


def bill_of_materials(environment: dict[str, str], tag: str, output: Path) -> None:
    """Write what is in an image to ``output``, as SPDX.

    Raises:
        CalledProcessError: if syft cannot read the image.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [SYFT, "scan", "--quiet", f"docker:{tag}", "--output", f"spdx-json={output}"],
        env={**os.environ, **environment, "SYFT_CHECK_FOR_APP_UPDATE": "false"}, check=True,
    )  # fmt: skip


def size(environment: dict[str, str], tag: str) -> int:
    """Bytes of an image's layers, unpacked."""
    return int(docker(environment, "image", "inspect", "--format", "{{.Size}}", tag).stdout)


@contextlib.contextmanager
def _served(folder: str) -> Iterator[str]:
    """A local folder of wheels under a URL that a build on the host's network reaches; anything else as it is."""
    if not folder or not Path(folder).is_dir():
        yield folder
        return
    handler = partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def _revision() -> str:
    """The commit that is checked out; with what is not committed marked."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty"]
    return subprocess.run(asked, text=True, capture_output=True, check=True).stdout.strip()


def main() -> None:
    """Build, list, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--tag", default=f"spare:{VERSION}")
    given = parser.parse_args()
    bill = ROOT / "out" / f"spare-{VERSION}-{given.device}.spdx.json"
    try:
        with engine(ROOT / "out" / "docker") as environment:
            build(environment, given.device, given.tag)
            bill_of_materials(environment, given.tag, bill)
            print(f"{given.tag}: {size(environment, given.tag) / 1e9:.2f} GB\n{bill}")
    except RuntimeError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
