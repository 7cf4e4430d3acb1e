"""A pipeline of anybody's runs under ``spare run -f``: each task in a process of its own, its failure told."""

# No "from __future__ import annotations": KFP's compiler reads the types themselves.
import json
import subprocess
import sys
from pathlib import Path

import pytest
from kfp import compiler, dsl


@dsl.component(base_image="example.org/python:1", install_kfp_package=False)
def look(name: str, facts: dsl.Output[dsl.Artifact]) -> int:
    """Leave what this process sees."""
    import json
    import os
    import pathlib
    import sys

    print(f"{name} was here")
    seen = {"pid": os.getpid(), "run": os.environ["SPARE_RUN_ID"], "torch": "torch" in sys.modules}
    pathlib.Path(facts.path).write_text(json.dumps(seen))
    return os.getpid()


@dsl.component(base_image="example.org/python:1", install_kfp_package=False)
def fail(how: str):
    """End as told."""
    import os
    import sys

    if how == "raise":
        raise ValueError("bad luck")
    if how == "exit":
        sys.exit(7)
    os.kill(os.getpid(), 9)


@dsl.pipeline(name="anybodys")
def anybodys(how: str = "not at all"):
    first = look(name="first")
    second = look(name="second").after(first)
    with dsl.If(how != "not at all"):
        fail(how=how).after(second)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = tmp_path_factory.mktemp("anybodys") / "pipeline.yaml"
    compiler.Compiler().compile(anybodys, str(compiled))
    return compiled


def run(file: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spare_core.cli", "run", "-f", str(file), "--output", "out", "--json", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_each_task_is_a_process_of_its_own(file: Path, tmp_path: Path) -> None:
    done = run(file, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    seen = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("facts"))]
    assert len({facts["pid"] for facts in seen}) == len(seen) == 2
    assert all(facts["run"] == report["run_id"] for facts in seen)
    assert not any(facts["torch"] for facts in seen), "what only our tasks need is not imported for anybody's"
    log = Path(report["log"]).read_text()
    assert "first was here" in log
    assert "second was here" in log


@pytest.mark.parametrize("how", ["raise", "exit", "kill"])
def test_a_task_that_fails_fails_the_run(file: Path, tmp_path: Path, how: str) -> None:
    done = run(file, tmp_path, f"how={how}")
    assert done.returncode == 1
    assert done.stdout == ""
    (log,) = (tmp_path / "out" / "logs").iterdir()
    assert str(log) in done.stderr
    assert ("ValueError: bad luck" in log.read_text()) == (how == "raise")


def test_our_tasks_find_what_they_need_imported_and_no_more() -> None:
    """One process imports for one after the other; what runs the model comes last."""
    stages = ("validate", "promote", "prepare")
    imports = "".join(
        f"warm._import_for(Path('components/{stage}/component.py').read_text());"
        "print('mlflow' in sys.modules, 'spare_core.workflow.tasks' in sys.modules, 'peft' in sys.modules);"
        for stage in stages
    )
    code = f"import sys; from pathlib import Path; from pipelines import warm; {imports}"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["True True False", "True True False", "True True True"], done.stderr[-2000:]
