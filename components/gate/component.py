"""The component that judges an adapter's figures by the policy."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(order: str, policy: str, name: str, version: int, verdict: dsl.Output[dsl.Metrics]):
    """Compare a version's evidence with the policy and record the verdict on it; fails if a rule is not met.

    A figure that was not measured fails its rule. A refused version stays registered, and is never promoted.

    Args:
        order: what was asked for, as the run's first task returns it
        policy: what the gate asks for, as the run's first task returns it
        name: of the registered model
        version: its number
        verdict: each rule with what was measured
    """
    from spare_core.workflow import tasks

    found = tasks.gate_task(order, policy, name, version)
    for reason in found["reasons"]:
        verdict.log_metric(reason["text"].partition(":")[0], reason["measured"])
    tasks.write_metrics(verdict.path, verdict.metadata)
