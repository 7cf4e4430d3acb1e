"""What KFP and Argo make of our compiled pipelines when something fails: a small model, for want of a cluster.

``translated`` follows KFP's compiler from its own specification to Argo's templates, ``Run`` follows Argo's controller
through these. Each rule says where it is from: KFP at 7b70c7b95f (2.17), Argo at f016ad89eb (4.x).
``python -m k8s.control_plane`` writes the tables of k8s/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PIPELINES = HERE.parent / "pipelines"
README = HERE / "README.md"
_WHATEVER = "ALL_UPSTREAM_TASKS_COMPLETED"
_MARKS = "<!-- what runs: python -m k8s.control_plane -->\n", "<!-- end of what runs -->"
SUCCEEDED, FAILED, OMITTED = "Succeeded", "Failed", "Omitted"


@dataclass(frozen=True)
class Step:
    """A task of an Argo DAG: ``template`` is another DAG or, where that is empty, a pod; ``depends`` are the tasks that
    must have Succeeded; ``hook`` is the DAG that runs once it has completed."""

    name: str
    template: str
    depends: tuple[str, ...] = ()
    loop: bool = False
    hook: str = ""


Templates = Mapping[str, Sequence[Step]]


def translated(specification: Mapping[str, Any]) -> Templates:
    """Argo's DAGs, by name, of a compiled pipeline (backend/src/v2/compiler/argocompiler/dag.go)."""
    found: dict[str, list[Step]] = {"entrypoint": [Step("root-driver", ""), Step("root", "root", ("root-driver",))]}
    components = specification["components"]

    def steps(name: str, task: Mapping[str, Any], hook: str = "", waits: bool = True) -> list[Step]:
        """A task is a driver and what it drives; a loop a DAG of a driver and iterations (task, iteratorTask)."""
        component = task["componentRef"]["name"]
        depends = tuple(task.get("dependentTasks", ())) if waits else ()
        driver = f"{name}-driver"
        if "parameterIterator" in task:
            around, inside = f"{component}-{name}-iterator", f"{component}-iteration"
            found[around] = [
                Step("iteration-driver", ""),
                Step("iteration-iterations", inside, ("iteration-driver",), loop=True),
            ]
            found[inside] = [
                Step("iteration-item-driver", ""), Step("iteration-item", component, ("iteration-item-driver",))
            ]  # fmt: skip
            return [Step(name, around, depends)]
        template = component if "dag" in components[component] else ""
        return [Step(driver, "", depends), Step(name, template, (driver,), hook=hook)]

    def add(name: str, dag: Mapping[str, Any]) -> None:
        """Tasks that wait for whatever comes of others are hooks of these, not tasks of the DAG (DAG, addExitTask)."""
        tasks = dict(sorted(dag["tasks"].items()))
        whatever = {
            one: task for one, task in tasks.items() if task.get("triggerPolicy", {}).get("strategy") == _WHATEVER
        }
        hooks = {
            before: f"exit-hook-{name}-{one}" for one, task in whatever.items() for before in task["dependentTasks"]
        }
        for one, task in whatever.items():
            found[f"exit-hook-{name}-{one}"] = steps(one, task, waits=False)
        found[name] = [
            step for one, task in tasks.items() if one not in whatever for step in steps(one, task, hooks.get(one, ""))
        ]

    add("root", specification["root"]["dag"])
    for name, component in components.items():
        if "dag" in component:
            add(name, component["dag"])
    return found


@dataclass
class Run:
    """A run in which the pods in ``failing`` fail for good, every condition holds, and every loop has ``count``
    iterations.

    ``ran`` are the pods that ran, by path, with how they ended; ``phase`` is the workflow's.
    """

    templates: Templates
    failing: frozenset[str] = frozenset()
    count: int = 3
    ran: dict[str, str] = field(default_factory=dict)
    phase: str = ""

    def __post_init__(self) -> None:
        self.phase = self._dag("entrypoint", "")

    def _dag(self, template: str, path: str) -> str:
        """workflow/controller/dag.go, executeDAGTask and assessDAGPhase: what can run does, whatever fails beside it;
        in the end a DAG has failed if the last that completed on the way to one of its leaves has."""
        phases: dict[str, str] = {}
        branches: dict[str, str] = {}
        steps = {step.name: step for step in self.templates[template]}
        for name in TopologicalSorter({step.name: step.depends for step in steps.values()}).static_order():
            step = steps[name]
            before = [branches[one] for one in step.depends]
            phases[step.name] = phase = self._step(step, f"{path}/{step.name}", phases)
            inherited = FAILED if FAILED in before else SUCCEEDED
            branches[step.name] = inherited if phase == OMITTED else phase
        awaited = {one for step in steps.values() for one in step.depends}
        return FAILED if FAILED in [branches[name] for name in steps if name not in awaited] else SUCCEEDED

    def _step(self, step: Step, path: str, phases: Mapping[str, str]) -> str:
        """Omitted where one that it depends on did not succeed; its hook runs only if it completed (runOnExitNode), and
        what becomes of that changes nothing for others. A loop fails if one iteration has, when all have ended."""
        if any(phases[one] != SUCCEEDED for one in step.depends):
            return OMITTED
        if step.loop:
            ends = [self._dag(step.template, f"{path}({number})") for number in range(self.count)]
            phase = FAILED if FAILED in ends else SUCCEEDED
        elif step.template:
            phase = self._dag(step.template, path)
        else:
            phase = FAILED if path in self.failing else SUCCEEDED
            assert path not in self.ran, f"{path} ran twice"
            self.ran[path] = phase
        if step.hook:
            self._dag(step.hook, f"{path}.onExit")
        return phase


def stage(path: str) -> str:
    """The task of ours that a pod is of, an iteration's with its number; drivers are said to be such."""
    name = path.rpartition("/")[2]
    number = re.findall(r"iterations\((\d+)\)", path)
    return f"{name} {int(number[-1]) + 1}" if number else name


def compiled(name: str) -> Templates:
    """Argo's DAGs of one of our pipelines."""
    return translated(next(yaml.safe_load_all((PIPELINES / f"{name}.yaml").read_text())))


def what_runs(name: str) -> str:
    """A table in Markdown: for each task of a pipeline, what runs when it fails for good."""
    templates = compiled(name)
    pods = [path for path in Run(templates).ran if not path.endswith("-driver")]
    runs = {path: Run(templates, frozenset({path})) for path in pods}
    rows = ["| what fails for good | runs all the same | does not run | the run is |", "|---|---|---|---|"]
    for failing, run in runs.items():
        if re.search(r"iterations\([1-9]\)", failing):
            continue  # as of the first request
        before = {path for path in pods if failing not in runs[path].ran}
        after = [stage(path) for path in pods if path in run.ran and path != failing and path not in before]
        missing = [stage(path) for path in pods if path not in run.ran]
        rows.append(f"| `{stage(failing)}` | {_listed(after)} | {_listed(missing)} | {run.phase} |")
    return "\n".join([f"**{name}**", "", *rows, ""])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def main() -> None:
    """Put the tables into k8s/README.md."""
    begin, end = _MARKS
    before, _, rest = README.read_text("utf-8").partition(begin)
    tables = "\n".join(what_runs(name) for name in ("spare", "bundle", "takedown"))
    README.write_text(f"{before}{begin}{tables}{end}{rest.partition(end)[2]}", "utf-8")


if __name__ == "__main__":
    main()
