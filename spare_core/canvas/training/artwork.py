"""Fetch the emoji artwork that the built-in models know: npm packages, pinned by version and sha256.

Only Noto (Google, Apache-2.0) and Twemoji (Twitter, CC-BY 4.0) pictures are read; see NOTICE.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from PIL import Image

from spare_core.canvas.grid import Grid

_VERSION: Final = "16.0.0"
_SHA256: Final = {
    "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}


def load_artwork(folder: Path, grid: Grid) -> dict[str, list[Image.Image]]:
    """Each object's drawings (RGBA, 64 x 64), downloaded with ``npm pack`` into ``folder`` on first use."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, list[Image.Image]] = {name: [] for name in grid.objects}
    for vendor in _SHA256:
        archive = _archive(folder, vendor)
        with tarfile.open(archive) as tar:
            for name, code_points in grid.artwork.items():
                for code_point in code_points:
                    member = tar.extractfile(f"package/img/{vendor}/64/{code_point}.png")
                    if member is None:
                        raise FileNotFoundError(f"{archive} has no 64-pixel picture of {code_point} ({name})")
                    drawings[name].append(Image.open(member).convert("RGBA"))
    return drawings


def _archive(folder: Path, vendor: str) -> Path:
    package = f"emoji-datasource-{vendor}"
    archive = folder / f"{package}-{_VERSION}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("npm is needed to fetch the artwork that Canvas is drawn from; install Node.js")
        subprocess.run([npm, "pack", "--silent", f"{package}@{_VERSION}"], cwd=folder, check=True, timeout=900)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != _SHA256[vendor]:
        raise RuntimeError(f"{archive} has sha256 {digest}, expected {_SHA256[vendor]}; delete it and run again")
    return archive
