"""What each task of the pipeline does: folders and texts in, folders and texts out, reported to MLflow as it goes.

A component calls one of these functions and nothing else. ``order_key`` is that of the order that :func:`validate_task`
returns. The environment says which pipeline run it is: as a parameter that would be another input in every run, and
nothing that an earlier run computed could be taken.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spare_core.concepts.prompts import all_prompts
from spare_core.errors import RegistryError, RegistryInputError, SpareError
from spare_core.evaluation.attacked import mean_success
from spare_core.evaluation.gate import Policy
from spare_core.files.atomic import write_bytes, write_json
from spare_core.registry import promotions
from spare_core.registry.client import connect
from spare_core.registry.evidence import evaluation_in, manifest_in, read_document
from spare_core.registry.models import EVIDENCE
from spare_core.registry.naming import bundle_name, check_name
from spare_core.registry.tracking import StageRun, stage_run, stages_of
from spare_core.store import Store
from spare_core.workflow.ending import end_runs
from spare_core.workflow.environment import CHECKPOINTS, STORE, open_run_store, pipeline_run_id, run_actor
from spare_core.workflow.events import reported
from spare_core.workflow.keeping import keeping
from spare_core.workflow.order import Champion, Order, check_order, request_id_of
from spare_core.workflow.services import await_services, task_of
from spare_core.workflow.travelling import expansion_problems, receive, send

if TYPE_CHECKING:
    from spare_core.runs.stages import Work


class Checked(NamedTuple):
    """An order and the policy its result is judged by, as :func:`spare_core.workflow.travelling.receive` takes them."""

    order: str
    policy: str


class Registered(NamedTuple):
    """Name and number of a registered model's version."""

    name: str
    version: int


def validate_task(parameters: Mapping[str, Any]) -> Checked:
    """Check all parameters of a run for one concept, before a GPU is asked for.

    Raises:
        SettingsError: with everything that is wrong.
        RegistryError: if MLflow cannot be reached.
    """
    return _checked("validate", parameters)


def collect_task(parameters: Mapping[str, Any]) -> Checked:
    """Check all parameters of a run for a bundle, which may go on from the one that is champion.

    Raises:
        SettingsError, RegistryError: see :func:`validate_task`; the latter also if the champion's evidence is not
        whole.
    """
    return _checked("collect", parameters)


def _checked(stage: str, parameters: Mapping[str, Any]) -> Checked:
    with task_of(stage) as results:
        problems = []
        if isinstance(parameters["name"], str) and parameters["name"]:
            try:
                check_name(parameters["name"])
            except RegistryInputError as error:
                problems.append(str(error))
        problems += expansion_problems(parameters)
        store = open_run_store() if os.environ.get(STORE) else None
        if store:
            store.check_create()
        else:
            problems.append(f"{STORE} is not set; set it to where evidence and promotions are kept, s3://bucket/prefix")
        with stage_run(request_id_of(parameters), stage, pipeline_run_id()) as run:
            run.params({name: value for name, value in parameters.items() if value not in ("", [], {})})
            order, policy = check_order(parameters, problems, lambda base: _champion(parameters, base, store))
            run.tags({"spare.base.digest": order.request.base, "spare.concept": order.request.erasures.title})
            assert store  # without one, that was among the problems
            # Kept for good; and whether the store can be written to is known now, not after the training.
            sent = Checked(send(store, order.to_json()), send(store, policy.to_json()))
        results |= {"request_id": order.request_id, "prompt": all_prompts(order.request.erasures)[1]}
        return sent


def _champion(parameters: Mapping[str, Any], base: str, store: Store | None) -> Champion | None:
    name = parameters["name"] or bundle_name(parameters["model"], base)
    return champion_of(name, base, store) if store else None


def champion_of(name: str, base: str, store: Store) -> Champion | None:
    """The bundle for the base model of that digest that is champion, with what is known of it.

    Raises:
        RegistryInputError: if the champion is no such bundle.
    """
    found = promotions.champion_of(connect(), name)
    if found is None:
        return None
    evidence = read_document(store, found.tags[EVIDENCE])
    manifest = manifest_in(store, evidence)
    if evidence["base_digest"] != base or "requests" not in manifest:
        raise RegistryInputError(f"{found.uri}, the champion, is no bundle of this base model; give another name")
    return Champion(found.version, found.tags[EVIDENCE], manifest)


def prepare_task(order_key: str, examples: Path) -> dict[str, Any]:
    """Draw the training examples; see :func:`spare_core.runs.stages.write_examples`."""
    with _task("prepare", order_key) as (order, run, _):
        from spare_core.runs import stages

        stages.write_examples(_open(order), examples)
        facts = _log_facts(run, examples, order, "prepare")
        request = order.request
        counts = {name: facts[name] for name in facts if name.partition("_")[0] in ("forget", "retain")}
        if request.images and request.images_digest:
            run.dataset("pictures of the concept", request.images_digest, request.images, "training", {})
        run.dataset("examples", request.sha256, f"drawn by {request.model}", "training", counts)
        return facts


def timesteps_task(order_key: str, examples: Path, profile: Path, page: Path) -> dict[str, Any]:
    """Profile when the concept is decided; ``page`` becomes an HTML page with the plot."""
    with _task("timesteps", order_key) as (order, run, _):
        from spare_core.evaluation.html import profile_page
        from spare_core.runs import stages
        from spare_core.runs.stage_files import PROFILE

        stages.write_profile(_open(order), examples, profile)
        facts = _log_facts(run, profile, order, "timesteps")
        plotted = {**json.loads((profile / PROFILE).read_text(encoding="utf-8")), **facts}
        _write_page(run, page, profile_page(order.request.erasures.title, plotted), "timesteps.html")
        return facts


def saliency_task(order_key: str, examples: Path, profile: Path, masks: Path) -> dict[str, Any]:
    """Choose the weights that may move; see :func:`spare_core.runs.stages.write_masks`."""
    with _task("saliency", order_key) as (order, run, _):
        from spare_core.runs import stages

        stages.write_masks(_open(order), examples, profile, masks)
        return _log_facts(run, masks, order, "saliency")


def distill_task(order_key: str, examples: Path, profile: Path, masks: Path, adapter: Path) -> dict[str, Any]:
    """Train the adapter; losses go to MLflow step by step. Returns its ``spare.json``."""
    with _task("distill", order_key) as (order, run, _):
        from spare_core.adapters.manifest import MANIFEST
        from spare_core.runs import stages

        run.params(order.request.settings.as_dict())
        measured: list[Any] = []
        logged = 0

        def on_step(state: Any) -> None:
            nonlocal logged
            if state.history and not logged:  # gone on with: the task before logged the rest
                logged = state.step - 1
            for step, (forget, retain) in enumerate(state.losses[logged:], logged + 1):
                run.metrics({"loss/forget": forget, "loss/retain": retain}, step)
            logged = state.step
            for row in state.history[len(measured) :]:
                run.metrics({"residual": row["residual"], "mean_drift": row["mean_drift"]}, int(row["step"]))
                measured.append(row)

        with _checkpoint(order) as kept:
            manifest = stages.write_adapter(_open(order), examples, profile, masks, adapter, kept, on_step)
        last = manifest["training"]["steps"]
        run.metrics({name: manifest[name] for name in ("residual", "mean_drift")}, last)
        run.metrics({"lr": manifest["training"]["lr"]}, last)
        _log_costs(run, manifest["seconds"]["distill"], manifest["peak_memory_bytes"])
        run.artifact(adapter / MANIFEST)
        return manifest


def compose_task(order_key: str, adapter: Path) -> dict[str, Any]:
    """All stages of a bundle in one task: its closed form needs few examples. Returns its ``spare.json``."""
    with _task("compose", order_key) as (order, run, _):
        return make_adapter(order, run, _open(order), adapter)


def make_adapter(order: Order, run: StageRun, work: Work, adapter: Path) -> dict[str, Any]:
    """All stages of an erasure in one process, reported to ``run``. Returns the adapter's ``spare.json``."""
    from spare_core.adapters.manifest import MANIFEST
    from spare_core.runs.erase import run_stages

    run.params(order.request.settings.as_dict())
    with _checkpoint(order) as kept, tempfile.TemporaryDirectory() as scratch:
        manifest = run_stages(work, kept or Path(scratch), adapter)
    run.metrics({name: manifest[name] for name in ("residual", "mean_drift")})
    run.metrics({f"residual/{name}": residual for name, residual in manifest["residuals"].items()})
    _log_costs(run, sum(manifest["seconds"].values()), manifest["peak_memory_bytes"])
    run.artifact(adapter / MANIFEST)
    return manifest


def evaluate_task(order_key: str, adapter: Path, evaluation: Path, page: Path) -> dict[str, Any]:
    """Measure what was forgotten, what was kept, and the damage; ``page`` becomes an HTML page with pictures."""
    with _task("evaluate", order_key) as (order, run, _):
        report = measure_adapter(order, run, _open(order), adapter, evaluation)
        from spare_core.evaluation.html import evaluation_page

        _write_page(run, page, evaluation_page(evaluation), "evaluation.html")
        return report


def measure_adapter(order: Order, run: StageRun, work: Work, adapter: Path, evaluation: Path) -> dict[str, Any]:
    """Measure an adapter into the folder ``evaluation``, and attack it if its policy asks for that; reported to
    ``run``. Returns the report."""
    from spare_core.adapters.directory import check_base, load_adapter
    from spare_core.evaluation.evaluate import evaluate as measure
    from spare_core.evaluation.judges import load_judge
    from spare_core.evaluation.report import summary_table
    from spare_core.runs.progress import ProgressDisplay

    request, suite = order.request, order.chosen_suite()
    stored = load_adapter(adapter)
    check_base(stored, request.base, request.model)
    judge = load_judge(suite, work.denoiser.device)
    before = None
    if order.evidence:
        store = open_run_store()
        before = evaluation_in(store, read_document(store, order.evidence)) or None
    report = measure(
        work.denoiser, request.base, [stored], suite, [], None, evaluation, judge, ProgressDisplay(),
        before=before,
    )  # fmt: skip
    if order.attacks:
        from spare_core.attacks.evidence import attack_evaluated

        report = attack_evaluated(
            work.denoiser, request.base, [stored], suite, judge, evaluation, order.attack_budget, order.attacks,
            ProgressDisplay(),
        )  # fmt: skip
    print(summary_table(report), flush=True)
    counts = {"pictures": report["counts"]["pictures"], "seeds": len(report["seeds"])}
    run.dataset(f"suite {suite.name}", order.suite_sha256, order.suite, "evaluation", counts)
    run.metrics(figures(report))
    for name in ("evaluation.json", *report["files"]):
        run.artifact(evaluation / name)
    return report


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation by name, those that were measured."""
    named = {
        f"{name}/{side}": report[side][name]
        for name in ("ua", "ira", "ira_unnamed", "cra", "fid")
        for side in ("base", "adapted")
    }
    named |= {name: report[name] for name in ("residual", "mean_drift")}
    if "attacks" in report:
        named |= {f"attack/{name}": share for name, share in mean_success(report["attacks"]).items()}
    return {name: float(value) for name, value in named.items() if value is not None}


def register_task(order_key: str, name: str, adapter: Path, evaluation: Path) -> Registered:
    """Register the adapter with its evidence as a version of the concept's model; again, it is the same version."""
    with _task("register", order_key) as (_, run, results):
        from spare_core.registry.registering import register as register_version

        version = register_version(run, open_run_store(), adapter, evaluation, name)
        results |= {
            "name": version.name, "version": version.version, "created": version.created,
            "adapter": str(adapter), "evaluation": str(evaluation),
        }  # fmt: skip
        return Registered(version.name, version.version)


def gate_task(order_key: str, policy: str, name: str, version: int) -> dict[str, Any]:
    """Judge the version's evidence by the policy; the verdict is recorded on the version. Returns it.

    Raises:
        GateRefused: if a rule is not met.
    """
    with _task("gate", order_key) as (_, _, results):
        from spare_core.registry import models

        registered = models.get_version(connect(), name, version)
        verdict, _ = models.judge(registered, open_run_store(), _policy(policy))
        for reason in verdict.reasons:
            print(f"{'met    ' if reason.passed else 'NOT MET'} {reason.rule}: {reason.text}", flush=True)
        results["passed"] = verdict.passed
        if not verdict.passed:
            raise verdict.refused(f"the gate refuses version {version} of {name}")
        return verdict.as_dict()


def promote_task(order_key: str, policy: str, name: str, version: int) -> dict[str, Any]:
    """Make the version champion, if the gate lets it pass; the one until now becomes ``previous``. Returns how the
    aliases stand."""
    with _task("promote", order_key) as (order, _, results):
        instead_of = (order.champion or None) if order.request.erasures.bundle else promotions.ANY
        move = promotions.promote(name, version, open_run_store(), run_actor(), _policy(policy), instead_of=instead_of)
        for note in move.notes:
            print(note, flush=True)
        aliases = {"champion": move.aliases.champion, "previous": move.aliases.previous}
        results |= {"name": name, "aliases": aliases, "moved": move.moved, "concept": order.request.erasures.title}
        return aliases


def finish_task(state: str, message: str) -> dict[str, Any]:
    """Record how a pipeline run ended, whatever became of it. ``state`` and ``message`` are KFP's."""
    with task_of("finish") as results:
        ended = end_runs(state, message)
        request_id, wrong = next(iter(ended.items()), (None, {}))
        results |= {"state": state, "request_id": request_id, "wrong": wrong}
        return dict(results)


class _Task(NamedTuple):
    """What a task works on: its order, its run in MLflow, and the results that are reported at its end."""

    order: Order
    run: StageRun
    results: dict[str, Any]


@contextmanager
def _task(name: str, order_key: str) -> Iterator[_Task]:
    with reported(name) as results:
        read = _received(name, order_key)
        with keeping(read), stage_run(read.request_id, name, pipeline_run_id()) as run:
            yield _Task(read, run, results)


def _received(name: str, order_key: str) -> Order:
    """The order under a key, once its services are there. Where it cannot be had, that is recorded as the stage's
    failure, if this pipeline run has worked on one request only: by the order it would be known which."""
    try:
        await_services()
        return Order.from_json(receive(open_run_store(), order_key))
    except SpareError:
        requests: list[str] = []
        with suppress(RegistryError):  # MLflow is away, too: then KFP's log has it
            requests = [*stages_of(pipeline_run_id())]
        if len(requests) == 1:
            with stage_run(requests[0], name, pipeline_run_id()):
                raise
        raise


def _policy(policy: str) -> Policy:
    return Policy.from_json(receive(open_run_store(), policy))


def _open(order: Order) -> Work:
    from spare_core.runs.progress import ProgressDisplay
    from spare_core.runs.stages import open_work

    return open_work(order.request, ProgressDisplay())


@contextmanager
def _checkpoint(order: Order) -> Iterator[Path | None]:
    """A folder for the training's state, locked and removed at the end; None where no folder outlives a task."""
    root = os.environ.get(CHECKPOINTS)
    if not root:
        yield None
        return
    from spare_core.runs.resume import Checkpoint

    folder = Path(root) / order.request.sha256
    with Checkpoint(folder, order.request.identity()) as kept:
        yield kept
    with suppress(OSError):  # also one that an interrupted attempt made
        folder.rmdir()


def _log_facts(run: StageRun, folder: Path, order: Order, stage: str) -> dict[str, Any]:
    from spare_core.runs.stage_files import STAGE, read_stage

    facts = read_stage(folder, stage, order.request)
    _log_costs(run, facts["seconds"], facts["peak_memory_bytes"])
    run.artifact(folder / STAGE)
    return facts


def metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among ``facts``, for an artifact's metadata."""
    return {name: value for name, value in facts.items() if isinstance(value, str | int | float)}


def write_metrics(path: str, values: Mapping[str, Any]) -> None:
    """A file for an artifact that is all metadata: without one, KFP's local cache takes it for lost."""
    write_json(Path(path), values)


def _log_costs(run: StageRun, seconds: float, memory: Mapping[str, int]) -> None:
    run.metrics({"seconds": seconds, **{f"peak_memory_bytes/{place}": size for place, size in memory.items()}})


def _write_page(run: StageRun, path: Path, content: str, name: str) -> None:
    """For the KFP UI at ``path``, for MLflow under a name of its own."""
    write_bytes(path, content.encode())
    run.text(content, name)
