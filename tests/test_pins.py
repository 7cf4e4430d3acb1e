"""What is tested here is what constraints.txt says, and the image is made of the same, each file by its hash."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "image" / "requirements"


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, set[str]]:
    """Versions by name; more than one where they depend on the Python or the system."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\\n]+)", path.read_text(), re.M):
        found.setdefault(normal(name), set()).add(version)
    return found


CONSTRAINTS = pins(ROOT / "constraints.txt")


def test_every_package_that_the_tests_run_with_is_pinned_and_is_that_release() -> None:
    # Only what SPARE needs: a user's environment may hold more.
    there = {normal(one.name): one.version for one in importlib.metadata.distributions()}
    assert {"torch", "mlflow", "kfp", "diffusers", "hera"} <= there.keys()
    for name, version in there.items():
        if name in CONSTRAINTS:
            assert version.partition("+")[0] in CONSTRAINTS[name], name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_image_is_made_of_the_same_releases_each_with_its_hash(device: str) -> None:
    lock = REQUIREMENTS / f"image-{device}.txt"
    locked = pins(lock)
    assert len(locked) > 100
    for name, (version,) in locked.items():
        assert version.removesuffix("+cpu") in CONSTRAINTS[name], name
    entries = re.split(r"^(?=[A-Za-z0-9_.-]+==)", lock.read_text(), flags=re.M)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    (torch,) = locked["torch"]
    assert torch.endswith("+cpu") == (device == "cpu")
    assert ("nvidia-cublas" in locked) == (device == "cuda")


def test_what_pins_are_held_back_are_as_they_are_held() -> None:
    held = pins(REQUIREMENTS / "held.txt")
    assert held
    assert {name: CONSTRAINTS[name] for name in held} == held
