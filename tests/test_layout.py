"""The house: dependencies point one way, importing is cheap, only the edges know a service."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("errors", "built_in", "streams"), ("checks",), ("files",), ("store",), ("concepts",), ("models",), ("adapters",),
    ("method",), ("runs",), ("evaluation",), ("attacks", "registry", "canvas"), ("workflow",), ("takedown",), ("cli",),
)  # fmt: skip
"""The rooms of spare_core from the ground up. A room imports from floors below it and from itself only. The package
itself is the door: it imports the two rooms that register what others look up by name, and may not be imported from
within."""
EARLIER = {"model_files", "artifact", "denoiser", "spare_base_digest"}
"""Names of release 0.1.0: the first one for adapters that it registered, the others for scripts that import them."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("torch", "diffusers", "transformers", "numpy", "peft", "huggingface_hub", "matplotlib")
EDGES = {
    "boto3": {"spare_core.store"},
    "botocore": {"spare_core.store"},
    "mlflow": {"spare_core.registry"},
    "kfp": set(),
    "prometheus_client": {"spare_core.takedown.monitoring"},
}
"""The modules that may know of a service."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "spare_core").rglob("*.py"))
}


def imports(module: str, types_too: bool = True) -> set[str]:
    """Every module that a file names in an import, wherever in the file; those for type checkers alone if asked."""
    found = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types_too:
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return found


def room(module: str) -> str:
    """The part of spare_core that a module is in; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def within(module: str, packages: set[str]) -> bool:
    """Whether ``module`` is one of ``packages`` or inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


def test_every_module_has_a_floor() -> None:
    rooms = {room(module) for module in MODULES} - {"", *EARLIER}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in FLOOR])
def test_imports_point_downwards_only(module: str) -> None:
    own = room(module)
    for imported in imports(module):
        if within(imported, {"spare_core"}) and room(imported) != own:
            if module == "spare_core.registry.spare_adapter_loader" and not room(imported):
                continue  # it travels inside adapters, and uses what is public
            assert room(imported), f"{module} imports names of the package itself; import the module that has them"
            assert FLOOR[room(imported)] < FLOOR[own], f"{module} imports {imported}, which is not below it"


def test_the_image_holds_what_its_servers_import() -> None:
    """Not the servers for trying things out, which need what tests need."""
    left_out = {
        f"serving.{Path(line).stem}"
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("serving/")
    }
    assert left_out == {"serving.demo_services", "serving.services"}
    for path in (ROOT / "serving").glob("*.py"):
        if f"serving.{path.stem}" not in left_out:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not named & left_out, path


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    edges = {m: {name for name in imports(m, types_too=False) if name in MODULES} for m in MODULES if room(m)}
    left = dict(edges)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other: {sorted(left)}"


def test_what_is_built_on_top_is_not_imported_from_below() -> None:
    """Pipelines and components are built on spare_core; only its command line hands them over."""
    outside = {"pipelines", "components", "serving", "benchmarks", "tests", "image", "k8s"}
    for module in MODULES:
        if room(module) != "cli":
            assert not any(within(name, outside) for name in imports(module)), module
    for path in (*(ROOT / "pipelines").glob("*.py"), *(ROOT / "components").rglob("*.py")):
        assert "spare_core.cli" not in path.read_text(encoding="utf-8").replace('"-m", "spare_core.cli"', ""), path


def test_the_method_touches_no_file() -> None:
    for module in MODULES:
        if room(module) == "method" and module != "spare_core.method.settings":  # a YAML file of settings
            names = imports(module)
            assert not names & {"pathlib", "os", "json", "safetensors", "io"}, module
            assert not any(within(name, {"spare_core.files", "spare_core.store"}) for name in names), module


@pytest.mark.parametrize("statement", [
    "import spare_core", "import spare_core.errors", "import spare_core.concepts.lists", "import spare_core.canvas",
    "import spare_core.method.settings", "import spare_core.cli.root", "import pipelines.local",
])  # fmt: skip
def test_what_the_command_line_needs_to_print_its_help_is_light(statement: str) -> None:
    assert loaded_by(statement).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", MODULES)
def test_only_the_edges_know_of_a_service(module: str) -> None:
    for service, allowed in EDGES.items():
        if not within(module, allowed):
            assert not any(within(name, {service}) for name in imports(module)), f"{module} imports {service}"


def test_the_loader_inside_adapters_of_release_0_1_0_finds_what_it_imports() -> None:
    from spare_core import model_files
    from spare_core.models import files

    assert model_files.find_model is files.find_model


def test_scripts_that_import_names_of_release_0_1_0_still_do() -> None:
    from spare_core import artifact, denoiser, spare_base_digest
    from spare_core.adapters import directory
    from spare_core.models import digest, loading

    assert (artifact.load_adapter, artifact.save_adapter) == (directory.load_adapter, directory.save_adapter)
    assert denoiser.load_denoiser is loading.load_denoiser
    assert spare_base_digest.digest_of_folder is digest.digest_of_folder


def test_the_first_task_and_the_gate_import_no_torch() -> None:
    """A GPU task waits for them: with torch each would start two seconds later."""
    parameters = (
        "{'model': 'canvas', 'erase': 'Cat', 'surrogate': 'Dog', 'kind': '', 'images': '', 'keep': [], 'template': '', "
        "'contexts': [], 'suite': '', 'seeds': 1, 'settings': {}, 'policy': '', 'name': '', 'promote': True}"
    )
    tasks = "import spare_core.takedown.tasks, spare_core.registry.promotions, mlflow"
    order = f"from spare_core.workflow.order import check_order\ncheck_order({parameters})"
    judged = "from spare_core.evaluation.gate import Policy, judge_figures\njudge_figures({}, Policy.find(''))"
    assert loaded_by(f"{tasks}\n{order}\n{judged}").isdisjoint({"torch", "diffusers", "transformers"})


def test_the_finished_model_does_not_need_what_it_was_trained_with() -> None:
    training = {"spare_core.canvas.training", "spare_core.canvas.renderer", "scipy"}
    for module in MODULES:
        if not within(module, training):
            assert not any(within(name, training) for name in imports(module)), module
