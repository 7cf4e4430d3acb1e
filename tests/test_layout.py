"""Importing is cheap, and the modules depend on each other in one direction only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import spare_core

PACKAGE = Path(spare_core.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
HEAVY = ("torch", "diffusers", "transformers", "numpy", "peft", "huggingface_hub", "matplotlib")
EDGES = {
    "boto3": {"spare_core.store"},
    "botocore": {"spare_core.store"},
    "mlflow": {"spare_core.registry"},
    "kfp": set(),
    "prometheus_client": {"spare_core.takedown.monitoring"},
}
"""The modules that may know of a service (DESIGN 2)."""
OUTER = {
    "spare_core.takedown.tasks": 4, "spare_core.takedown.erasing": 4,
    "spare_core.takedown.monitoring": 3,
    "spare_core.cli": 4, "spare_core.workflow.tasks": 3,
    "spare_core.registry": 2,
    "spare_core.store": 2, "spare_core.takedown": 2,
}  # fmt: skip
"""Layers above the method; 0 is the method itself and 1 is nothing yet."""


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, packages: set[str]) -> bool:
    """Whether ``module`` is one of ``packages`` or inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["spare_core", "spare_core.errors", "spare_core.concepts.concept",
                                    "spare_core.method.settings", "spare_core.canvas", "spare_core.canvas.protocol",
                                    "spare_core.cli.main", "pipelines.local"])  # fmt: skip
def test_what_the_command_line_needs_to_print_its_help_is_light(module: str) -> None:
    assert loaded_by(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize("module", MODULES)
def test_only_the_edges_know_of_a_service(module: str) -> None:
    for service, allowed in EDGES.items():
        if not within(module, allowed):
            assert not any(within(name, {service}) for name in imports(MODULES[module])), f"{module} imports {service}"


@pytest.mark.parametrize("module", MODULES)
def test_the_method_does_not_know_what_is_built_on_it(module: str) -> None:
    own = next((rank for outer, rank in OUTER.items() if within(module, {outer})), 0)
    above = {outer for outer, rank in OUTER.items() if rank > own}
    assert not any(within(name, above) for name in imports(MODULES[module]))


def test_the_finished_model_does_not_need_what_it_was_trained_with() -> None:
    training = {"spare_core.canvas.training", "spare_core.canvas.renderer", "scipy"}
    for module, path in MODULES.items():
        if not within(module, training):
            assert not any(within(name, training) for name in imports(path)), module
